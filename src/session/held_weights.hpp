#pragma once

#include <cstdint>
#include <vector>

#include "kernels/executor.hpp"
#include "kernels/move.hpp"
#include "model/catalog.hpp"
#include "plan/plan.hpp"

namespace weightcast {

/// What a trainer rank holds when its weights are in memory: of every tensor that it sends any of, the rows
/// that it sends, as a training framework would hold them.
struct HeldWeights {
  struct Rows {
    std::int64_t row = 0;
    std::int64_t end = 0;
    std::int64_t offset = 0;  ///< bytes from the start of the memory
  };

  std::vector<Rows> tensors;  ///< by catalog index; empty ranges for what the trainer does not hold
  std::int64_t bytes = 0;
};

HeldWeights held_weights(const Plan& plan, const Catalog& catalog, std::int64_t trainer);

/// How such a trainer packs: one move and one digest box for every segment that it sends, in the order of the
/// buckets; buffer 0 is the memory.
struct HeldPrograms {
  std::vector<Move> moves;
  std::vector<DigestBox> boxes;       ///< boxes[i] is what moves[i] packs
  std::vector<ProgramRange> buckets;  ///< by plan bucket; empty for the buckets of other trainers
};

HeldPrograms held_programs(const Plan& plan, const Catalog& catalog, std::int64_t trainer,
                           const HeldWeights& held);

}  // namespace weightcast
