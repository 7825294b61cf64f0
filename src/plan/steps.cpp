#include "plan/steps.hpp"

#include <algorithm>
#include <cstddef>

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

/// What a root has yet to send: a queue for each destination set, because what comes behind a bucket that
/// does not fit goes to another set if it does.
class Root {
 public:
  explicit Root(const std::vector<Bucket>& queue) : queue_(queue), left_(queue.size()) {
    for (std::size_t i = 0; i < queue.size(); ++i) {
      const auto found = std::find_if(sets_.begin(), sets_.end(), [&](const Set& set) {
        return queue[set.places.front()].destinations == queue[i].destinations;
      });
      (found == sets_.end() ? sets_.emplace_back() : *found).places.push_back(i);
    }
  }

  std::size_t left() const { return left_; }

  /// The first that fits, which then has its links; nullptr: none.
  const Bucket* take(Links& links) {
    Set* first = nullptr;
    for (Set& set : sets_) {
      if (set.taken == set.places.size() || !links.fits(queue_[set.next()])) continue;
      if (first == nullptr || set.next() < first->next()) first = &set;
    }
    if (first == nullptr) return nullptr;
    const Bucket* const bucket = &queue_[first->next()];
    ++first->taken;
    --left_;
    links.take(*bucket);
    return bucket;
  }

 private:
  struct Set {
    std::vector<std::size_t> places;  ///< in the queue
    std::size_t taken = 0;
    std::size_t next() const { return places[taken]; }
  };

  const std::vector<Bucket>& queue_;
  std::vector<Set> sets_;
  std::size_t left_;
};

}  // namespace

std::vector<Bucket> order_in_steps(const Plan& plan, const std::vector<std::vector<Bucket>>& queues) {
  std::vector<Root> roots;
  roots.reserve(queues.size());
  for (const auto& queue : queues) roots.emplace_back(queue);
  std::vector<Root*> by_need;
  for (Root& root : roots) by_need.push_back(&root);
  std::vector<Bucket> ordered;
  Links links(plan);
  while (std::any_of(roots.begin(), roots.end(), [](const Root& root) { return root.left() > 0; })) {
    links.begin_step();
    std::stable_sort(by_need.begin(), by_need.end(),
                     [](const Root* a, const Root* b) { return a->left() > b->left(); });
    const std::size_t first = ordered.size();
    for (Root* root : by_need) {
      if (const Bucket* bucket = root->take(links)) ordered.push_back(*bucket);
    }
    // Within a step by number, whoever chose first.
    std::sort(ordered.begin() + static_cast<std::ptrdiff_t>(first), ordered.end(),
              [](const Bucket& a, const Bucket& b) { return a.root < b.root; });
  }
  return ordered;
}

std::vector<std::vector<std::size_t>> links_by_step(const Plan& plan) {
  const auto trainers = static_cast<std::size_t>(plan.topology.trainers);
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
    steps.back().push_back(bucket.root);
    const bool alone = plan.topology.engine.replicas == 1;
    for (const std::int64_t c : plan.destinations[bucket.destinations]) {
      // What a rank hands to itself comes through no link, unless another replica hears it, too.
      const bool itself = alone && plan.topology.inference_rank(bucket.root) == c;
      if (!itself) steps.back().push_back(trainers + static_cast<std::size_t>(c));
    }
  }
  return steps;
}

StepCounts count_steps(const Plan& plan) {
  const std::size_t count =
      static_cast<std::size_t>(plan.topology.trainers + plan.topology.engine.replica_ranks());
  std::vector<std::vector<std::size_t>> steps = links_by_step(plan);
  std::vector<std::int64_t> buckets(count, 0);
  for (const std::vector<std::size_t>& step : steps) {
    for (const std::size_t link : step) ++buckets[link];
  }
  StepCounts counts;
  counts.steps = static_cast<std::int64_t>(steps.size());
  for (const std::int64_t most : buckets) counts.least = std::max(counts.least, most);
  // Backwards: a link has something in a later step when it was met before.
  std::vector<bool> later(count, false);
  std::size_t waiting = 0;
  std::reverse(steps.begin(), steps.end());
  for (const std::vector<std::size_t>& step : steps) {
    std::size_t busy = 0;
    for (const std::size_t link : step) {
      if (later[link]) ++busy;
    }
    if (busy < waiting) ++counts.with_idle_link;
    for (const std::size_t link : step) {
      if (!later[link]) ++waiting;
      later[link] = true;
    }
  }
  return counts;
}

}  // namespace weightcast
