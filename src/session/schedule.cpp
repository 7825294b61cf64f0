#include "session/schedule.hpp"

#include <algorithm>
#include <iterator>

#include "plan/batches.hpp"

namespace weightcast {

namespace {

/// The rank plan's buckets cut where the plan's batches begin, and its rounds.
std::vector<Schedule::Batch> batches_of(const Plan& plan, const RankPlan& rank_plan,
                                        std::span<const std::uint32_t> rounds) {
  const std::vector<std::uint32_t> batches_only = concurrent_batches(plan);
  std::vector<std::uint32_t> starts;
  std::set_union(batches_only.begin(), batches_only.end(), rounds.begin(), rounds.end(),
                 std::back_inserter(starts));
  std::vector<Schedule::Batch> batches;
  std::size_t next = 0;  // the first of the plan's batches that begins behind the buckets so far
  for (std::size_t k = 0; k < rank_plan.buckets.size(); ++k) {
    const std::uint32_t bucket = rank_plan.buckets[k].bucket;
    if (bucket >= starts[next]) batches.push_back({k, k});
    while (bucket >= starts[next]) ++next;
    batches.back().last = k + 1;
  }
  return batches;
}

/// Whether nobody but its root has to do with a bucket. What is packed as codes is staged all the same.
bool stays(const Plan& plan, const Bucket& bucket) {
  if (plan.travels(bucket)) return false;
  const auto segments = std::span(plan.segments).subspan(bucket.first_segment, bucket.segments);
  return std::all_of(segments.begin(), segments.end(),
                     [&](const Segment& segment) { return plan.wire[segment.tensor].travels_as_held(); });
}

std::vector<bool> direct_buckets(const RankPlan& rank_plan, const std::vector<bool>& of_plan) {
  std::vector<bool> direct;
  if (of_plan.empty()) return direct;
  for (const RankBucket& bucket : rank_plan.buckets) direct.push_back(of_plan[bucket.bucket]);
  return direct;
}

std::vector<bool> staged_buckets(const Plan& plan, const RankPlan& rank_plan, bool resident,
                                 const std::vector<bool>& direct) {
  std::vector<bool> staged;
  for (std::size_t k = 0; k < rank_plan.buckets.size(); ++k) {
    const bool is_direct = !direct.empty() && direct[k];
    staged.push_back(!is_direct && (!resident || !stays(plan, plan.buckets[rank_plan.buckets[k].bucket])));
  }
  return staged;
}

}  // namespace

Schedule::Schedule(const Plan& plan, const RankPlan& rank_plan, bool resident,
                   std::span<const std::uint32_t> rounds, const std::vector<bool>& direct)
    : direct_(direct_buckets(rank_plan, direct)),
      batches_(batches_of(plan, rank_plan, rounds)),
      slots_(staged_buckets(plan, rank_plan, resident, direct_),
             static_cast<std::size_t>(plan.limits.buffers)) {
  for (const Batch batch : batches_) {
    for (std::size_t k = batch.first; k < batch.last; ++k) {
      if (local(k)) continue;
      if (first_batch_.last == 0) first_batch_ = batch;
      last_batch_ = batch;
      if (first_staged_ == StagingSlots::kNone && staged(k)) first_staged_ = k;
    }
  }
}

}  // namespace weightcast
