#include "plan/steps.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <unordered_map>

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

/// Coordinates of a replica.
class Coordinates {
 public:
  explicit Coordinates(std::size_t count) : words_((count + kBits - 1) / kBits, 0) {}

  void add(std::size_t c) { words_[c / kBits] |= std::uint64_t{1} << (c % kBits); }
  void add(const Coordinates& others) {
    for (std::size_t i = 0; i < words_.size(); ++i) words_[i] |= others.words_[i];
  }
  void clear() { std::fill(words_.begin(), words_.end(), 0); }
  bool has_any_of(const Coordinates& others) const {
    for (std::size_t i = 0; i < words_.size(); ++i) {
      if ((words_[i] & others.words_[i]) != 0) return true;
    }
    return false;
  }

  friend bool operator==(const Coordinates& a, const Coordinates& b) = default;

 private:
  static constexpr std::size_t kBits = 64;
  std::vector<std::uint64_t> words_;
};

/// What a root has yet to send: a queue for each destination set, because what comes behind a bucket that
/// does not fit goes to another set if it does.
class Root {
 public:
  Root(const Plan& plan, const std::vector<Bucket>& queue, const std::vector<Coordinates>& hearers)
      : queue_(queue), left_(queue.size()) {
    std::unordered_map<std::uint32_t, std::size_t> by_set;
    for (std::size_t i = 0; i < queue.size(); ++i) {
      const std::uint32_t set = queue[i].destinations;
      const auto [found, is_new] = by_set.emplace(set, sets_.size());
      if (is_new) sets_.push_back({plan.travels(queue[i]) ? &hearers[set] : nullptr, {}});
      sets_[found->second].places.push_back(i);
      if (is_new && sets_.back().hearers == nullptr) keeps_some_ = true;
    }
  }

  std::size_t left() const { return left_; }
  /// Whether any of it travels nowhere, and so needs no link of a destination.
  bool keeps_some() const { return keeps_some_; }

  /// The first whose destinations are not `taken`, which then are; nullptr: none.
  const Bucket* take(Coordinates& taken) {
    const auto fits = [&](const Set& set) {
      return set.hearers == nullptr || !taken.has_any_of(*set.hearers);
    };
    // They stand in the order of their next places.
    const auto first = std::find_if(sets_.begin(), sets_.end(), fits);
    if (first == sets_.end()) return nullptr;
    const Bucket* const bucket = &queue_[first->next()];
    if (first->hearers != nullptr) taken.add(*first->hearers);
    --left_;
    if (++first->taken == first->places.size()) {
      sets_.erase(first);
      return bucket;
    }
    const auto behind =
        std::find_if(first + 1, sets_.end(), [&](const Set& set) { return set.next() > first->next(); });
    std::rotate(first, first + 1, behind);
    return bucket;
  }

 private:
  struct Set {
    const Coordinates* hearers;       ///< null: the root alone
    std::vector<std::size_t> places;  ///< in the queue
    std::size_t taken = 0;
    std::size_t next() const { return places[taken]; }
  };

  const std::vector<Bucket>& queue_;
  std::vector<Set> sets_;
  std::size_t left_;
  bool keeps_some_ = false;
};

}  // namespace

std::vector<Bucket> order_in_steps(const Plan& plan, const std::vector<std::vector<Bucket>>& queues) {
  const auto replica_ranks = static_cast<std::size_t>(plan.topology.engine.replica_ranks());
  std::vector<Coordinates> hearers;
  hearers.reserve(plan.destinations.size());
  // Of all sets: when they are taken, nothing more travels in a step.
  Coordinates all(replica_ranks);
  for (const std::vector<std::int64_t>& set : plan.destinations) {
    Coordinates& of_set = hearers.emplace_back(replica_ranks);
    for (const std::int64_t c : set) of_set.add(static_cast<std::size_t>(c));
    all.add(of_set);
  }
  std::vector<Root> roots;
  roots.reserve(queues.size());
  for (const auto& queue : queues) roots.emplace_back(plan, queue, hearers);
  std::vector<Root*> by_need;
  for (Root& root : roots) by_need.push_back(&root);
  std::vector<Bucket> ordered;
  Coordinates taken(replica_ranks);
  while (std::any_of(roots.begin(), roots.end(), [](const Root& root) { return root.left() > 0; })) {
    taken.clear();
    std::stable_sort(by_need.begin(), by_need.end(),
                     [](const Root* a, const Root* b) { return a->left() > b->left(); });
    const std::size_t first = ordered.size();
    for (Root* root : by_need) {
      if (taken == all && !root->keeps_some()) continue;
      if (const Bucket* bucket = root->take(taken)) ordered.push_back(*bucket);
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
