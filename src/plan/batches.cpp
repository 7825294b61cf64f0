#include "plan/batches.hpp"

#include <algorithm>
#include <utility>

namespace weightcast {

namespace {

/// How often each rank takes part in the buckets of the current batch. All replicas are served alike, so a
/// coordinate stands for its ranks; a colocated root is one of them.
class Participation {
 public:
  explicit Participation(const Plan& plan)
      : plan_(plan),
        most_(std::max<std::int64_t>(1, (plan.limits.buffers + 1) / 2)),
        coordinates_(static_cast<std::size_t>(plan.topology.engine.replica_ranks()), 0),
        roots_(static_cast<std::size_t>(plan.topology.trainers), 0),
        staying_(roots_.size(), 0) {}

  bool fits(const Bucket& bucket) const {
    if (stays(bucket)) return staying_[bucket.root] < plan_.limits.buffers - most_;
    if (!plan_.topology.colocate && roots_[bucket.root] > 0) return false;
    if (std::find(routes_.begin(), routes_.end(), route(bucket)) != routes_.end()) return false;
    const auto root_coordinate = std::int64_t{bucket.root} % plan_.topology.engine.replica_ranks();
    if (plan_.topology.colocate && busy(root_coordinate) >= most_) return false;
    const auto& set = plan_.destinations[bucket.destinations];
    return std::all_of(set.begin(), set.end(), [&](std::int64_t c) { return busy(c) < most_; });
  }

  void add(const Bucket& bucket) {
    if (stays(bucket)) {
      ++staying_[bucket.root];
      return;
    }
    routes_.push_back(route(bucket));
    ++roots_[bucket.root];
    for (const std::int64_t c : plan_.destinations[bucket.destinations]) {
      ++coordinates_[static_cast<std::size_t>(c)];
    }
  }

  void clear() {
    routes_.clear();
    std::ranges::fill(coordinates_, 0);
    std::ranges::fill(roots_, 0);
    std::ranges::fill(staying_, 0);
  }

 private:
  static std::pair<std::uint32_t, std::uint32_t> route(const Bucket& bucket) {
    return {bucket.root, bucket.destinations};
  }

  /// A bucket that its root hands to itself takes none of what others need; where there are no other buffers,
  /// it counts as one that travels.
  bool stays(const Bucket& bucket) const { return plan_.limits.buffers > most_ && !plan_.travels(bucket); }

  /// The most that any rank at this coordinate takes part, as a destination and, colocated, as a root.
  std::int64_t busy(std::int64_t coordinate) const {
    std::int64_t most = coordinates_[static_cast<std::size_t>(coordinate)];
    if (!plan_.topology.colocate) return most;
    const std::int64_t step = plan_.topology.engine.replica_ranks();
    const std::int64_t as_destination = most;
    for (std::int64_t rank = coordinate; rank < plan_.topology.trainers; rank += step) {
      most = std::max(most, as_destination + roots_[static_cast<std::size_t>(rank)]);
    }
    return most;
  }

  const Plan& plan_;
  std::int64_t most_;
  std::vector<std::pair<std::uint32_t, std::uint32_t>> routes_;
  std::vector<std::int64_t> coordinates_;
  std::vector<std::int64_t> roots_;
  std::vector<std::int64_t> staying_;  ///< of the roots
};

}  // namespace

std::vector<std::uint32_t> concurrent_batches(const Plan& plan) {
  std::vector<std::uint32_t> starts;
  Participation participation(plan);
  for (std::uint32_t b = 0; b < plan.buckets.size(); ++b) {
    if (b == 0 || !participation.fits(plan.buckets[b])) {
      starts.push_back(b);
      participation.clear();
    }
    participation.add(plan.buckets[b]);
  }
  starts.push_back(static_cast<std::uint32_t>(plan.buckets.size()));
  return starts;
}

Limits divided_for_peers(const Topology& topology, const Limits& limits, double share) {
  // Smaller messages do not fill a link: NVLink carries those of 64 MiB at 95 % of its rate.
  constexpr std::int64_t kLeastPiece = std::int64_t{64} << 20;
  constexpr std::int64_t kMiB = std::int64_t{1} << 20;
  constexpr double kLittle = 0.25;
  if (!topology.colocate || share < kLittle || limits.bucket_bytes <= kLeastPiece) return limits;
  const std::int64_t staging = limits.buffers * limits.bucket_bytes;
  const std::int64_t peers = topology.engine.replica_ranks() - 1;
  // A buffer for each that is sent and each that is heard, twice.
  const std::int64_t pieces = std::min(4 * peers, staging / kLeastPiece);
  if (pieces <= limits.buffers) return limits;
  Limits divided = limits;
  divided.buffers = pieces;
  divided.bucket_bytes = staging / pieces / kMiB * kMiB;
  return divided;
}

}  // namespace weightcast
