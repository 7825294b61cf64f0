#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "plan/plan.hpp"
#include "plan/rank_plan.hpp"
#include "session/staging_slots.hpp"

namespace weightcast {

/// How one rank goes through an update over NCCL, compiled from its rank plan before the first: which buckets
/// travel at once, which need no staging, which slot each of the others takes and after which bucket, and
/// when a kernel may take the whole device because nothing travels beside it. Buckets are numbered as in the
/// rank plan.
class Schedule {
 public:
  /// The buckets [first, last), of which those that are not local travel at once.
  struct Batch {
    std::size_t first = 0;
    std::size_t last = 0;
  };

  /// `resident`: the rank's weights are in the device's memory, so that a bucket which nobody else sends or
  /// receives goes from there to the parameters at once. It is local. `rounds`: as in SessionOptions; no
  /// batch reaches from one into another.
  Schedule(const Plan& plan, const RankPlan& rank_plan, bool resident,
           std::span<const std::uint32_t> rounds = {});

  /// In the global order; no batch needs more slots than there are.
  std::span<const Batch> batches() const { return batches_; }
  const StagingSlots& slots() const { return slots_; }
  bool local(std::size_t k) const { return slots_.slot(k) == StagingSlots::kNone; }
  /// The first bucket that is not local; StagingSlots::kNone where all are.
  std::size_t first_staged() const { return first_staged_; }

  /// Nothing of this rank travels yet while bucket k is packed: it is of the first batch with one that does.
  bool packed_alone(std::size_t k) const { return k < first_batch_.last; }
  /// Nothing travels any more while bucket k is unpacked: it is of the last such batch. Or nothing ever does.
  bool unpacked_alone(std::size_t k) const {
    return first_staged_ == StagingSlots::kNone || (!local(k) && k >= last_batch_.first);
  }

 private:
  std::vector<Batch> batches_;
  StagingSlots slots_;
  std::size_t first_staged_ = StagingSlots::kNone;
  // With something that is not local.
  Batch first_batch_;
  Batch last_batch_;
};

}  // namespace weightcast
