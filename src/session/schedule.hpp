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
/// travel at once, which need no staging because they are local or direct, which slot each of the others
/// takes and after which bucket, and when a kernel may take the whole device because nothing travels beside
/// it. Buckets are numbered as in the rank plan.
class Schedule {
 public:
  /// The buckets [first, last), of which those that go through staging travel at once.
  struct Batch {
    std::size_t first = 0;
    std::size_t last = 0;
  };

  /// `resident`: the rank's weights are in the device's memory, so that a bucket which nobody else sends or
  /// receives goes from there to the parameters at once. It is local. `rounds`: as in SessionOptions; no
  /// batch reaches from one into another. `direct[b]`: the root of plan bucket b writes it into its
  /// destinations' parameters; none at all: no bucket is.
  Schedule(const Plan& plan, const RankPlan& rank_plan, bool resident,
           std::span<const std::uint32_t> rounds = {}, const std::vector<bool>& direct = {});

  /// In the global order; no batch needs more slots than there are.
  std::span<const Batch> batches() const { return batches_; }
  const StagingSlots& slots() const { return slots_; }
  bool direct(std::size_t k) const { return !direct_.empty() && direct_[k]; }
  bool staged(std::size_t k) const { return slots_.slot(k) != StagingSlots::kNone; }
  bool local(std::size_t k) const { return !staged(k) && !direct(k); }
  /// The first bucket that goes through staging; StagingSlots::kNone where none does.
  std::size_t first_staged() const { return first_staged_; }

  /// Nothing of this rank travels yet while bucket k is packed: it is of the first batch with one that does.
  bool packed_alone(std::size_t k) const { return k < first_batch_.last; }
  /// Nothing travels any more while bucket k is unpacked: it is of the last such batch. Or nothing ever does.
  bool unpacked_alone(std::size_t k) const {
    return last_batch_.last == 0 || (!local(k) && k >= last_batch_.first);
  }

 private:
  std::vector<bool> direct_;  ///< empty: none
  std::vector<Batch> batches_;
  StagingSlots slots_;
  std::size_t first_staged_ = StagingSlots::kNone;
  // With something that is not local.
  Batch first_batch_;
  Batch last_batch_;
};

}  // namespace weightcast
