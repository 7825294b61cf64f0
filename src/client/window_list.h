/* What an exporter and the job step both see of a window, through which tensors come that the engine's own
   loader takes: which are whole, and how many it has taken. Shared memory in a file of its own. C and C++
   read it; its layout is part of the contract, as control_block.h's. */
#ifndef WEIGHTCAST_CLIENT_WINDOW_LIST_H
#define WEIGHTCAST_CLIENT_WINDOW_LIST_H

#include <stdint.h>

/* "WCLIST", a version of the layout, a zero. */
#define WEIGHTCAST_LIST_MAGIC UINT64_C(0x00015453494c4357)

/* Behind it lie the numbers of entries of the manifest, of 32 bits each, in the order in which they became
   whole; there is room for all entries. Both counts grow within an update, and the exporter makes them 0
   before it says that it has paused. */
struct weightcast_window_list {
  uint64_t magic;
  uint64_t generation; /* of the manifest that names this list */
  uint32_t landed;     /* numbers that are there: stored by the job step behind them (release). The exporter
                          sleeps on it (a futex). */
  uint32_t taken;      /* how many of them the exporter has used up, and given the memory of back */
};

#define WEIGHTCAST_LIST_BYTES(entries) \
  ((int64_t)sizeof(struct weightcast_window_list) + (int64_t)(entries) * (int64_t)sizeof(uint32_t))
#define WEIGHTCAST_LIST_ENTRIES(list) ((uint32_t*)((list) + 1))

#endif
