#include "plan/batches.hpp"

#include <algorithm>

namespace weightcast {

namespace {

/// How often each rank takes part in the buckets of the current batch. All replicas are served alike, so a
/// coordinate stands for its ranks; a colocated root is one of them.
class Participation {
 public:
  explicit Participation(const Plan& plan)
      : plan_(plan),
        coordinates_(static_cast<std::size_t>(plan.topology.engine.replica_ranks()), 0),
        roots_(static_cast<std::size_t>(plan.topology.trainers), 0) {}

  bool fits(const Bucket& bucket, std::int64_t most) const {
    if (roots_[bucket.root] > 0) return false;
    const auto root_coordinate = std::int64_t{bucket.root} % plan_.topology.engine.replica_ranks();
    if (plan_.topology.colocate && busy(root_coordinate) >= most) return false;
    const auto& set = plan_.destinations[bucket.destinations];
    return std::all_of(set.begin(), set.end(), [&](std::int64_t c) { return busy(c) < most; });
  }

  void add(const Bucket& bucket) {
    ++roots_[bucket.root];
    for (const std::int64_t c : plan_.destinations[bucket.destinations]) {
      ++coordinates_[static_cast<std::size_t>(c)];
    }
  }

  void clear() {
    std::ranges::fill(coordinates_, 0);
    std::ranges::fill(roots_, 0);
  }

 private:
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
  std::vector<std::int64_t> coordinates_;
  std::vector<std::int64_t> roots_;
};

}  // namespace

std::vector<std::uint32_t> concurrent_batches(const Plan& plan) {
  const std::int64_t most = std::max<std::int64_t>(1, (plan.limits.buffers + 1) / 2);
  std::vector<std::uint32_t> starts;
  Participation participation(plan);
  for (std::uint32_t b = 0; b < plan.buckets.size(); ++b) {
    if (b == 0 || !participation.fits(plan.buckets[b], most)) {
      starts.push_back(b);
      participation.clear();
    }
    participation.add(plan.buckets[b]);
  }
  starts.push_back(static_cast<std::uint32_t>(plan.buckets.size()));
  return starts;
}

}  // namespace weightcast
