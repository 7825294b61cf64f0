/* What an engine and the job step both see of which experts sit in which expert slots: shared memory in a
   file of its own, which the engine writes whenever it has moved experts, under a sequence lock. C and C++
   read it; its layout is part of the contract, as control_block.h's. */
#ifndef WEIGHTCAST_CLIENT_EXPERT_TABLE_H
#define WEIGHTCAST_CLIENT_EXPERT_TABLE_H

#include <stdint.h>

/* "WCEXPT", a version of the layout, a zero. */
#define WEIGHTCAST_TABLE_MAGIC UINT64_C(0x0001545058454357)

/* The most expert slots of all layers together. */
#define WEIGHTCAST_MOST_SLOTS (INT64_C(1) << 24)

/* Behind it lie, of 64 bits each, as engines' own tensors have them: the expert in each slot [layers, slots];
   the slots of each expert, ascending, then -1 [layers, experts, copies]; how many these are [layers,
   experts]. The sizes never change. */
struct weightcast_expert_table {
  uint64_t magic;
  uint64_t generation; /* of the manifest that names this table */
  uint64_t sequence;   /* odd while the rest is being written; another even number afterwards */
  int64_t epoch;       /* the engine's own count of its maps */
  int64_t layers;
  int64_t slots;
  int64_t experts;
  int64_t copies; /* the most that an expert can have: slots - experts + 1 */
};

static inline int64_t weightcast_table_numbers(int64_t layers, int64_t slots, int64_t experts) {
  return layers * (slots + experts * (slots - experts + 1) + experts);
}
static inline int64_t weightcast_table_bytes(int64_t layers, int64_t slots, int64_t experts) {
  return (int64_t)sizeof(struct weightcast_expert_table) +
         weightcast_table_numbers(layers, slots, experts) * (int64_t)sizeof(int64_t);
}

#endif
