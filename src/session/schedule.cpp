#include "session/schedule.hpp"

#include <algorithm>

#include "plan/groups.hpp"

namespace weightcast {

namespace {

/// The share's buckets cut where the plan's groups begin.
std::vector<Schedule::Group> groups_of(const Plan& plan, const Share& share) {
  const std::vector<std::uint32_t> starts = concurrent_groups(plan);
  std::vector<Schedule::Group> groups;
  std::size_t next = 0;  // the first of the plan's groups that begins behind the buckets so far
  for (std::size_t k = 0; k < share.buckets.size(); ++k) {
    const std::uint32_t bucket = share.buckets[k].bucket;
    if (bucket >= starts[next]) groups.push_back({k, k});
    while (bucket >= starts[next]) ++next;
    groups.back().last = k + 1;
  }
  return groups;
}

/// Whether nobody but its root has to do with a bucket. What is packed as codes is staged all the same.
bool stays(const Plan& plan, const Bucket& bucket) {
  if (plan.travels(bucket)) return false;
  const auto segments = std::span(plan.segments).subspan(bucket.first_segment, bucket.segments);
  return std::all_of(segments.begin(), segments.end(),
                     [&](const Segment& segment) { return plan.wire[segment.tensor].travels_as_held(); });
}

std::vector<bool> staged_buckets(const Plan& plan, const Share& share, bool resident) {
  std::vector<bool> staged;
  for (const ShareBucket& bucket : share.buckets) {
    staged.push_back(!resident || !stays(plan, plan.buckets[bucket.bucket]));
  }
  return staged;
}

}  // namespace

Schedule::Schedule(const Plan& plan, const Share& share, bool resident)
    : buckets_(share.buckets.size()),
      groups_(groups_of(plan, share)),
      slots_(staged_buckets(plan, share, resident), static_cast<std::size_t>(plan.limits.buffers)) {
  std::size_t first = 0;
  while (first < buckets_ && local(first)) ++first;
  if (first < buckets_) first_staged_ = first;
}

}  // namespace weightcast
