#include "plan/steps.hpp"

#include <algorithm>
#include <functional>
#include <numeric>

namespace weightcast {

namespace {

/// Which links are taken in a step. A coordinate that hears itself alone hears nobody.
class Links {
 public:
  explicit Links(const Plan& plan)
      : plan_(plan),
        roots_(static_cast<std::size_t>(plan.topology.trainers), 0),
        coordinates_(static_cast<std::size_t>(plan.topology.engine.replica_ranks()), 0) {}

  void begin_step() { ++step_; }

  bool fits(const Bucket& bucket) const {
    if (roots_[bucket.root] == step_) return false;
    const auto& set = plan_.destinations[bucket.destinations];
    return !plan_.travels(bucket) ||
           std::none_of(set.begin(), set.end(), [&](std::int64_t c) { return at(c) == step_; });
  }

  void take(const Bucket& bucket) {
    roots_[bucket.root] = step_;
    if (!plan_.travels(bucket)) return;
    for (const std::int64_t c : plan_.destinations[bucket.destinations]) {
      coordinates_[static_cast<std::size_t>(c)] = step_;
    }
  }

 private:
  std::int64_t at(std::int64_t coordinate) const {
    return coordinates_[static_cast<std::size_t>(coordinate)];
  }

  const Plan& plan_;
  std::int64_t step_ = 0;
  // The last step in which each was taken.
  std::vector<std::int64_t> roots_;
  std::vector<std::int64_t> coordinates_;
};

}  // namespace

std::vector<Bucket> order_in_steps(const Plan& plan, std::vector<std::vector<Bucket>> queues) {
  std::size_t left = std::transform_reduce(queues.begin(), queues.end(), std::size_t{0}, std::plus<>(),
                                           [](const auto& queue) { return queue.size(); });
  std::vector<Bucket> ordered;
  ordered.reserve(left);
  std::vector<std::size_t> roots(queues.size());
  std::iota(roots.begin(), roots.end(), std::size_t{0});
  Links links(plan);
  while (left > 0) {
    links.begin_step();
    std::stable_sort(roots.begin(), roots.end(),
                     [&](std::size_t a, std::size_t b) { return queues[a].size() > queues[b].size(); });
    const std::size_t first = ordered.size();
    for (const std::size_t root : roots) {
      auto& queue = queues[root];
      const auto found =
          std::find_if(queue.begin(), queue.end(), [&](const Bucket& bucket) { return links.fits(bucket); });
      if (found == queue.end()) continue;
      links.take(*found);
      ordered.push_back(*found);
      queue.erase(found);
      --left;
    }
    // Within a step by number, whoever chose first.
    std::sort(ordered.begin() + static_cast<std::ptrdiff_t>(first), ordered.end(),
              [](const Bucket& a, const Bucket& b) { return a.root < b.root; });
  }
  return ordered;
}

StepCounts count_steps(const Plan& plan) {
  // Links: of trainers, then of coordinates. `last` is the last step that each has something in.
  const auto trainers = static_cast<std::size_t>(plan.topology.trainers);
  const std::size_t count = trainers + static_cast<std::size_t>(plan.topology.engine.replica_ranks());
  std::vector<std::int64_t> buckets(count, 0);
  std::vector<std::vector<std::size_t>> steps;
  Links links(plan);
  links.begin_step();
  bool fresh = true;
  for (const Bucket& bucket : plan.buckets) {
    if (!plan.travels(bucket)) continue;
    if (!fresh && !links.fits(bucket)) {
      links.begin_step();
      fresh = true;
    }
    if (fresh) steps.emplace_back();
    fresh = false;
    links.take(bucket);
    const auto add = [&](std::size_t link) {
      ++buckets[link];
      steps.back().push_back(link);
    };
    add(bucket.root);
    for (const std::int64_t c : plan.destinations[bucket.destinations]) {
      add(trainers + static_cast<std::size_t>(c));
    }
  }
  StepCounts counts;
  counts.steps = static_cast<std::int64_t>(steps.size());
  for (const std::int64_t most : buckets) counts.least = std::max(counts.least, most);
  // Backwards: a link has something in a later step when it was met before.
  std::vector<bool> later(count, false);
  std::size_t waiting = 0;
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    std::size_t busy = 0;
    for (const std::size_t link : *step) {
      if (later[link]) ++busy;
    }
    if (busy < waiting) ++counts.with_idle_link;
    for (const std::size_t link : *step) {
      if (!later[link]) ++waiting;
      later[link] = true;
    }
  }
  return counts;
}

}  // namespace weightcast
