#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/executor.hpp"
#include "kernels/move.hpp"
#include "kernels/quant_move.hpp"
#include "model/catalog.hpp"
#include "plan/held_weights.hpp"
#include "plan/plan.hpp"

namespace weightcast {

/// What a digest of a trainer's memory is added to.
struct SentDigest {
  std::uint32_t number = 0;  ///< Plan::digests
  bool widened = false;      ///< what is sent is float32, what lies in memory bfloat16
};

/// What a trainer whose weights are in memory does for an update, compiled: how it packs its buckets, in
/// their order, out of its numbered buffers. Where values travel, there is a move for each part of a segment
/// that lies in one held box. A segment that is quantised on either side has a quantiser's move, which makes
/// its digests; where the values travel, that move writes nothing. Other segments have a digest box for each
/// part.
struct Sending {
  /// Ranges by plan bucket; empty for the buckets of other trainers.
  struct Ranges {
    ProgramRange moves;   ///< all of them
    ProgramRange staged;  ///< the moves of segments that travel through staging
    ProgramRange quants;
    ProgramRange boxes;
  };

  /// A segment that is sent from where it lies, without staging.
  struct Direct {
    std::uint32_t buffer = 0;
    std::int64_t offset = 0;
  };

  std::vector<Move> moves;              ///< of each bucket first those that are staged
  std::vector<std::uint32_t> segments;  ///< of each move
  std::vector<QuantMove> quants;
  std::vector<DigestBox> boxes;
  std::vector<Ranges> buckets;
  std::vector<std::optional<Direct>> direct;  ///< by segment of the plan
};

/// The sending of `trainer`, which holds `held`. Throws InternalError naming the tensor when it does not hold
/// all of a segment that it has to send, UsageError when a segment that is quantised lies in several boxes.
Sending compile_sending(const Plan& plan, const Catalog& catalog, std::int64_t trainer,
                        const HeldWeights& held);

/// Whether the bytes of a segment that travels in a message of its own may go past this rank's staging:
/// `move` is what would bring them there or from there. They must lie without gaps and, because a rank that
/// is root and destination of a bucket unpacks it from its own staging, the rank must not be both.
bool bypasses_staging(const Plan& plan, const Bucket& bucket, std::int64_t world_rank, const Move& move);

}  // namespace weightcast
