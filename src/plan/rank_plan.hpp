#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/executor.hpp"
#include "kernels/move.hpp"
#include "kernels/quant_move.hpp"
#include "model/family.hpp"
#include "model/parameter.hpp"
#include "plan/plan.hpp"

namespace weightcast {

/// A consecutive part of a bucket that travels as one message. A segment of at least kDirectBytes is a
/// message of its own: a root may send it from where it is, and a destination may receive it where it
/// belongs, without staging. The segments between two such are one message. The cuts depend on the plan
/// alone, so both sides make the same ones.
struct Message {
  static constexpr std::uint32_t kNone = ~0u;

  std::int64_t staging = 0;  ///< bytes from the start of the bucket
  std::int64_t bytes = 0;
  std::uint32_t segment = kNone;  ///< the one segment of a message that may go directly
  std::uint32_t move = kNone;     ///< of RankPlan::moves: received right where this move would put it
};

/// A bucket that this rank packs, receives, or both (colocated).
struct RankBucket {
  std::uint32_t bucket = 0;  ///< index into Plan::buckets
  bool root = false;
  bool destination = false;
  std::uint32_t first_move = 0;    ///< of RankPlan::moves
  std::uint32_t staged_moves = 0;  ///< the unpack program
  std::uint32_t moves = 0;         ///< with those behind the program that the transport makes
  std::uint32_t first_quant = 0;   ///< of RankPlan::quants
  std::uint32_t quants = 0;
  std::uint32_t first_check = 0;  ///< of RankPlan::checks
  std::uint32_t checks = 0;
  std::uint32_t first_message = 0;  ///< of RankPlan::messages
  std::uint32_t messages = 0;
  /// Bytes of all of the plan's buckets behind this rank's previous bucket, up to and with this one.
  std::int64_t progress_bytes = 0;
};

/// What one rank has to do for an update, compiled: flat arrays, no names, no decisions left.
struct RankPlan {
  std::vector<Parameter> parameters;            ///< of an inference rank; empty for a pure trainer
  std::vector<std::int64_t> parameter_offsets;  ///< of each parameter in the rank's parameter memory
  std::int64_t parameter_bytes = 0;             ///< size of that memory
  std::vector<RankBucket> buckets;              ///< in the global order
  std::vector<Move> moves;                      ///< of all buckets, one behind the other
  std::vector<QuantMove> quants;                ///< of all buckets: what is quantised here on arrival
  /// Of all buckets: for each bucket first one for each of its moves, then those of what it quantises.
  std::vector<DigestBox> checks;
  std::vector<Message> messages;  ///< of all buckets, one behind the other
  std::vector<Move> padding;      ///< zero fills, run before the first bucket

  std::span<const Move> program(const RankBucket& bucket) const {
    return std::span(moves).subspan(bucket.first_move, bucket.staged_moves);
  }
  std::span<const Message> messages_of(const RankBucket& bucket) const {
    return std::span(messages).subspan(bucket.first_message, bucket.messages);
  }
  std::span<const QuantMove> quant_program(const RankBucket& bucket) const {
    return std::span(quants).subspan(bucket.first_quant, bucket.quants);
  }
  std::span<const DigestBox> digest_program(const RankBucket& bucket) const {
    return std::span(checks).subspan(bucket.first_check, bucket.checks);
  }
};

/// Parameters begin at multiples of this in a rank's parameter memory.
inline constexpr std::int64_t kParameterAlignment = 256;

/// The plan of world rank `rank`, with the proof that it writes each of its bytes exactly once.
RankPlan make_rank_plan(const Plan& plan, const Family& family, std::int64_t rank);

}  // namespace weightcast
