#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cinttypes>
#include <cstring>

#include "client/arguments.hpp"
#include "client/block.hpp"
#include "client/error.hpp"
#include "client/export.hpp"
#include "client/memory.hpp"
#include "client/memory_names.hpp"

namespace weightcast::client {

namespace {

std::int64_t* numbers_of(weightcast_expert_table& table) {
  return reinterpret_cast<std::int64_t*>(&table + 1);
}

void store(std::int64_t& to, std::int64_t value) {
  __atomic_store_n(&to, value, __ATOMIC_RELAXED);
}

/// Writes all that follows from which experts are in which slots.
void fill(weightcast_expert_table& table, const std::int64_t* experts_of_slots) {
  std::int64_t* const physical = numbers_of(table);
  std::int64_t* const logical = physical + table.layers * table.slots;
  std::int64_t* const counts = logical + table.layers * table.experts * table.copies;
  for (std::int64_t i = 0; i < table.layers * table.experts * table.copies; ++i) store(logical[i], -1);
  for (std::int64_t i = 0; i < table.layers * table.experts; ++i) store(counts[i], 0);
  for (std::int64_t layer = 0; layer < table.layers; ++layer) {
    for (std::int64_t slot = 0; slot < table.slots; ++slot) {
      const std::int64_t expert = experts_of_slots[layer * table.slots + slot];
      const std::int64_t at = layer * table.experts + expert;
      store(physical[layer * table.slots + slot], expert);
      store(logical[at * table.copies + counts[at]], slot);
      store(counts[at], counts[at] + 1);
    }
  }
}

/// Fails for a slot that holds no expert's number, and for an expert that no slot holds.
int require_whole(const weightcast_expert_table& table, const std::int64_t* experts_of_slots) {
  auto* found = static_cast<unsigned char*>(::malloc(static_cast<std::size_t>(table.experts)));
  if (found == nullptr) return fail_with_errno("the experts of a layer");
  int code = WEIGHTCAST_OK;
  for (std::int64_t layer = 0; layer < table.layers && code == WEIGHTCAST_OK; ++layer) {
    std::memset(found, 0, static_cast<std::size_t>(table.experts));
    for (std::int64_t slot = 0; slot < table.slots && code == WEIGHTCAST_OK; ++slot) {
      const std::int64_t expert = experts_of_slots[layer * table.slots + slot];
      if (expert >= 0 && expert < table.experts) {
        found[expert] = 1;
        continue;
      }
      code = fail(WEIGHTCAST_BAD_ARGUMENT,
                  "slot %" PRId64 " of layer %" PRId64 " holds %" PRId64 ", which is none of %" PRId64
                  " experts; give the expert in each slot",
                  slot, layer, expert, table.experts);
    }
    for (std::int64_t expert = 0; expert < table.experts && code == WEIGHTCAST_OK; ++expert) {
      if (found[expert] != 0) continue;
      code = fail(WEIGHTCAST_BAD_ARGUMENT,
                  "no slot of layer %" PRId64 " holds expert %" PRId64 "; give each expert a slot", layer,
                  expert);
    }
  }
  ::free(found);
  return code;
}

/// Fails while an engine's parameters are a job step's.
int require_no_update(const weightcast_export& e) {
  const weightcast_state state = WEIGHTCAST_STATE_OF(load_word(*e.block));
  if (is_at_rest(state) || state == WEIGHTCAST_ASKED) return WEIGHTCAST_OK;
  return fail(WEIGHTCAST_REFUSED, "an update is under way; move experts when it has ended");
}

/// Fails where the weights have no final form now.
int require_final(const weightcast_export& e) {
  const std::uint64_t word = load_word(*e.block);
  switch (WEIGHTCAST_STATE_OF(word)) {
    case WEIGHTCAST_NONE:
    case WEIGHTCAST_INVALID:
      return fail(
          WEIGHTCAST_IS_INVALID,
          "the memory holds no version, and no weight has its final form; wait for an update, or load "
          "one and call weightcast_serve");
    case WEIGHTCAST_SERVING:
      return WEIGHTCAST_OK;
    case WEIGHTCAST_ASKED:
      if (e.block->rest == WEIGHTCAST_SERVING) return WEIGHTCAST_OK;
      return fail(WEIGHTCAST_IS_INVALID,
                  "the memory holds no version, and no weight has its final form; answer the update first");
    default:
      return fail(WEIGHTCAST_REFUSED,
                  "an update is under way; use weights when weightcast_resume has ended it");
  }
}

}  // namespace

void drop_experts(weightcast_export& e) {
  if (e.experts == nullptr) return;
  const weightcast_expert_table& table = *e.experts;
  ::munmap(e.experts,
           static_cast<std::size_t>(weightcast_table_bytes(table.layers, table.slots, table.experts)));
  ::shm_unlink(e.experts_name);
  e.experts = nullptr;
}

}  // namespace weightcast::client

using namespace weightcast::client;

extern "C" int weightcast_add_experts(weightcast_export* e, int64_t layers, int64_t slots, int64_t experts) {
  if (const int code = require_usable(e, false); code != WEIGHTCAST_OK) return code;
  if (!e->engine) return fail(WEIGHTCAST_BAD_ARGUMENT, "only an engine has expert slots; leave this out");
  if (e->experts != nullptr)
    return fail(WEIGHTCAST_BAD_ARGUMENT, "the experts are there already; add them once");
  if (layers < 1 || experts < 1 || slots < experts || slots > WEIGHTCAST_MOST_SLOTS ||
      layers > WEIGHTCAST_MOST_SLOTS / slots) {
    return fail(WEIGHTCAST_BAD_ARGUMENT,
                "%" PRId64 " layers of %" PRId64 " slots for %" PRId64
                " experts; give at least a layer, an expert, a slot for each expert, and at most %" PRId64
                " slots together",
                layers, slots, experts, WEIGHTCAST_MOST_SLOTS);
  }
  name_of_memory(e->experts_name, sizeof e->experts_name, ::getuid(), e->generation, "experts");
  e->experts = static_cast<weightcast_expert_table*>(
      make_memory(*e, e->experts_name, weightcast_table_bytes(layers, slots, experts)));
  if (e->experts == nullptr) return WEIGHTCAST_REFUSED;
  *e->experts = {WEIGHTCAST_TABLE_MAGIC, e->generation, 1, -1, layers, slots, experts, slots - experts + 1};
  return WEIGHTCAST_OK;
}

extern "C" int weightcast_place_experts(weightcast_export* e, int64_t epoch,
                                        const int64_t* experts_of_slots) {
  if (const int code = require_usable(e, e != nullptr && e->published); code != WEIGHTCAST_OK) return code;
  if (const int code = require_given(experts_of_slots, "the experts of slots"); code != WEIGHTCAST_OK)
    return code;
  if (e->experts == nullptr)
    return fail(WEIGHTCAST_BAD_ARGUMENT, "the export has no expert slots; call weightcast_add_experts first");
  weightcast_expert_table& table = *e->experts;
  if (epoch <= table.epoch || epoch < 0 || epoch >= INT64_C(1) << 53) {
    return fail(WEIGHTCAST_BAD_ARGUMENT,
                "epoch %" PRId64 " after %" PRId64 "; count it up with every map, from 0 to 2^53", epoch,
                table.epoch);
  }
  if (const int code = require_whole(table, experts_of_slots); code != WEIGHTCAST_OK) return code;
  if (const int code = require_no_update(*e); code != WEIGHTCAST_OK) return code;
  const std::uint64_t sequence = table.sequence | 1;
  __atomic_store_n(&table.sequence, sequence, __ATOMIC_RELAXED);
  __atomic_thread_fence(__ATOMIC_RELEASE);
  store(table.epoch, epoch);
  fill(table, experts_of_slots);
  __atomic_store_n(&table.sequence, sequence + 1, __ATOMIC_RELEASE);
  ++e->form;
  return WEIGHTCAST_OK;
}

extern "C" int weightcast_placed_experts(const weightcast_export* e, int64_t* epoch,
                                         int64_t* experts_of_slots) {
  if (const int code = require_engine(e); code != WEIGHTCAST_OK) return code;
  if (const int code = require_given(experts_of_slots, "the room for experts of slots");
      code != WEIGHTCAST_OK)
    return code;
  if (e->experts == nullptr)
    return fail(WEIGHTCAST_BAD_ARGUMENT, "the export has no expert slots; call weightcast_add_experts first");
  weightcast_expert_table& table = *e->experts;
  const std::int64_t* const from = numbers_of(table);
  // Nobody writes it for longer than a moment.
  constexpr int kMostLooks = 1000;
  for (int looks = 0; looks < kMostLooks; ++looks) {
    const std::uint64_t before = __atomic_load_n(&table.sequence, __ATOMIC_ACQUIRE);
    if (before % 2 == 0) {
      if (epoch != nullptr) *epoch = __atomic_load_n(&table.epoch, __ATOMIC_RELAXED);
      for (std::int64_t i = 0; i < table.layers * table.slots; ++i)
        experts_of_slots[i] = __atomic_load_n(from + i, __ATOMIC_RELAXED);
      __atomic_thread_fence(__ATOMIC_ACQUIRE);
      if (__atomic_load_n(&table.sequence, __ATOMIC_RELAXED) == before) return WEIGHTCAST_OK;
    }
    ::usleep(1000);
  }
  return fail(WEIGHTCAST_IS_INVALID,
              "where experts sit was being written when its writer died; call weightcast_place_experts");
}

extern "C" int weightcast_refer(const weightcast_export* e, const char* name,
                                weightcast_reference* reference) {
  if (const int code = require_engine(e); code != WEIGHTCAST_OK) return code;
  if (const int code = require_given(reference, "the place for the reference"); code != WEIGHTCAST_OK)
    return code;
  const int entry = number_of_entry(*e, name);
  if (entry < 0) return WEIGHTCAST_BAD_ARGUMENT;
  if (e->entries.items[entry].segment == e->window) {
    return fail(WEIGHTCAST_BAD_ARGUMENT,
                "%s: passes through a window, and the engine's loader has it; refer to what it made of it",
                name);
  }
  if (const int code = require_final(*e); code != WEIGHTCAST_OK) return code;
  *reference = {e->generation, e->form, entry};
  return WEIGHTCAST_OK;
}

extern "C" int weightcast_resolve(const weightcast_export* e, const weightcast_reference* reference,
                                  void** memory, int64_t* bytes) {
  if (const int code = require_engine(e); code != WEIGHTCAST_OK) return code;
  if (const int code = require_given(reference, "the reference"); code != WEIGHTCAST_OK) return code;
  if (const int code = require_given(memory, "the place for the memory"); code != WEIGHTCAST_OK) return code;
  if (reference->generation != e->generation || reference->entry < 0 || reference->entry >= e->entries.size) {
    return fail(WEIGHTCAST_BAD_ARGUMENT, "the reference is none of this export; call weightcast_refer");
  }
  if (const int code = require_final(*e); code != WEIGHTCAST_OK) return code;
  const Entry& entry = e->entries.items[reference->entry];
  if (reference->form != e->form) {
    return fail(WEIGHTCAST_STALE,
                "%s: weights or the places of experts have changed since it was referred to; call "
                "weightcast_refer anew",
                entry.name);
  }
  const Segment& segment = e->segments.items[entry.segment];
  const auto offset = static_cast<std::uint64_t>(entry.offset);
  // NOLINTNEXTLINE(performance-no-int-to-ptr): the driver's addresses are numbers
  *memory = segment.memory == nullptr ? reinterpret_cast<void*>(segment.gpu.address + offset)
                                      : static_cast<char*>(segment.memory) + offset;
  if (bytes != nullptr) *bytes = bytes_of_entry(entry);
  return WEIGHTCAST_OK;
}
