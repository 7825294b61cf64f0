#pragma once

#include <cstdint>
#include <vector>

#include "kernels/executor.hpp"
#include "kernels/move.hpp"
#include "kernels/quant_move.hpp"
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

/// How such a trainer packs what it sends, in the order of the buckets; buffer 0 of the sources is the
/// memory. A segment whose values travel has a move, one of a quantised tensor a quantiser's move (which
/// where the values travel writes nothing and is there for digests), all others a digest box.
struct HeldPrograms {
  /// Ranges by plan bucket; empty for the buckets of other trainers.
  struct Ranges {
    ProgramRange moves;
    ProgramRange quants;
    ProgramRange boxes;
  };

  std::vector<Move> moves;
  std::vector<std::uint32_t> segments;  ///< of each move
  std::vector<QuantMove> quants;
  std::vector<DigestBox> boxes;
  std::vector<Ranges> buckets;
};

HeldPrograms held_programs(const Plan& plan, const Catalog& catalog, std::int64_t trainer,
                           const HeldWeights& held);

}  // namespace weightcast
