#include "model/near_balance.hpp"

#include <algorithm>
#include <numeric>
#include <optional>
#include <set>
#include <utility>
#include <vector>

namespace weightcast {

namespace {

using Numbers = std::vector<std::int64_t>;

template <typename Value>
auto& at(std::vector<Value>& values, std::int64_t index) {
  return values[static_cast<std::size_t>(index)];
}
template <typename Value>
const Value& at(const std::vector<Value>& values, std::int64_t index) {
  return values[static_cast<std::size_t>(index)];
}

/// Experts that two groups of slots have in common, each as often as both have it.
std::int64_t common(Numbers a, Numbers b) {
  std::ranges::sort(a);
  std::ranges::sort(b);
  Numbers both;
  std::ranges::set_intersection(a, b, std::back_inserter(both));
  return std::ssize(both);
}

/// The `size` slots of group `number`.
Numbers group_of(const Numbers& slots, std::int64_t number, std::int64_t size) {
  return {slots.begin() + number * size, slots.begin() + (number + 1) * size};
}

/// Groups of `size` slots of `wanted`, put where those of `previous` have most in common with them.
Numbers matched(const Numbers& wanted, const Numbers& previous, std::int64_t size) {
  struct Pair {
    std::int64_t in_common;
    std::int64_t from;
    std::int64_t to;
  };
  const std::int64_t groups = std::ssize(wanted) / size;
  std::vector<Pair> pairs;
  for (std::int64_t from = 0; from < groups; ++from) {
    for (std::int64_t to = 0; to < groups; ++to) {
      pairs.push_back({common(group_of(wanted, from, size), group_of(previous, to, size)), from, to});
    }
  }
  std::ranges::stable_sort(pairs, std::greater<>(), &Pair::in_common);
  std::set<std::int64_t> taken;
  std::set<std::int64_t> given;
  Numbers result(wanted.size());
  for (const Pair& pair : pairs) {
    if (taken.contains(pair.from) || given.contains(pair.to)) continue;
    taken.insert(pair.from);
    given.insert(pair.to);
    std::copy_n(wanted.begin() + pair.from * size, size, result.begin() + pair.to * size);
  }
  return result;
}

/// The experts of a rank in the slots in which it has them already, where it has.
Numbers kept_in_place(Numbers wanted, const Numbers& previous) {
  Numbers result(wanted.size(), -1);
  for (std::size_t slot = 0; slot < previous.size(); ++slot) {
    const auto found = std::ranges::find(wanted, previous[slot]);
    if (found == wanted.end()) continue;
    result[slot] = *found;
    wanted.erase(found);
  }
  for (std::int64_t& expert : result) {
    if (expert >= 0) continue;
    expert = wanted.front();
    wanted.erase(wanted.begin());
  }
  return result;
}

/// The layer `wanted` with nodes, ranks and slots renamed.
Numbers renamed(const Numbers& wanted, const Numbers& previous, std::int64_t nodes, std::int64_t ranks) {
  const auto slots = static_cast<std::int64_t>(wanted.size());
  const Numbers by_node = matched(wanted, previous, slots / nodes);
  Numbers result;
  for (std::int64_t node = 0; node < nodes; ++node) {
    const Numbers before = group_of(previous, node, slots / nodes);
    const Numbers by_rank = matched(group_of(by_node, node, slots / nodes), before, slots / ranks);
    for (std::int64_t rank = 0; rank < ranks / nodes; ++rank) {
      const Numbers own =
          kept_in_place(group_of(by_rank, rank, slots / ranks), group_of(before, rank, slots / ranks));
      result.insert(result.end(), own.begin(), own.end());
    }
  }
  return result;
}

double sum_of_imbalances(const ExpertLoads& loads, const ExpertMap& map) {
  const std::vector<double> all = imbalances(loads, map);
  return std::accumulate(all.begin(), all.end(), 0.0);
}

/// One layer whose slots are changed step by step.
class LayerSearch {
 public:
  LayerSearch(std::span<const float> loads, Numbers slots, std::int64_t ranks, std::int64_t nodes)
      : loads_(loads.begin(), loads.end()),
        before_(slots),
        slots_(std::move(slots)),
        nodes_(nodes),
        size_(std::ssize(slots_) / ranks),
        copies_(loads.size()),
        busy_(static_cast<std::size_t>(ranks)) {
    for (const std::int64_t expert : slots_) ++at(copies_, expert);
    mean_ = std::accumulate(loads_.begin(), loads_.end(), 0.0) / static_cast<double>(ranks);
    reckon();
  }

  /// What the next step brings, and how many more slots than now then differ from before.
  struct Step {
    double gain = 0;    ///< off the busiest rank, ÷ mean
    double evener = 0;  ///< off the sum of squares
    std::int64_t more = 0;
    std::int64_t slot = 0;
    std::int64_t expert = 0;
    std::int64_t other = -1;  ///< a slot that gets what `slot` had

    /// Slots that change stand for one another; what costs nothing is taken for half of one.
    double worth() const { return gain / (more > 0 ? static_cast<double>(more) : 0.5); }
  };

  /// The best step with which at most `room` more slots differ.
  std::optional<Step> best(std::int64_t room) {
    std::optional<Step> best;
    const auto consider = [&](Step step) {
      step.more = cost(step);
      if (step.more > room) return;
      weigh(step);
      const double least = 1e-9;
      if (step.gain < -least || (step.gain < least && step.evener < least)) return;
      const auto rank_of = [](const Step& one) { return std::pair(one.worth(), one.evener); };
      if (!best || rank_of(*best) < rank_of(step)) best = step;
    };
    const std::int64_t busiest = std::max_element(busy_.begin(), busy_.end()) - busy_.begin();
    const auto slots = std::ssize(slots_);
    for (std::int64_t slot = 0; slot < slots; ++slot) {
      const std::int64_t has = at(slots_, slot);
      if (at(copies_, has) > 1) {
        // Only another copy of what the busiest rank has, or one less there, can help it.
        for (const std::int64_t expert : experts_to_try(slot, busiest)) {
          if (expert != has && may_hold(slot, expert)) consider({0, 0, 0, slot, expert, -1});
        }
      }
      if (slot / size_ != busiest) continue;
      for (std::int64_t other = 0; other < slots; ++other) {
        if (other / size_ == busiest || at(slots_, other) == has || !may_swap(slot, other)) continue;
        consider({0, 0, 0, slot, at(slots_, other), other});
      }
    }
    return best;
  }

  void take(const Step& step) {
    const std::int64_t has = std::exchange(at(slots_, step.slot), step.expert);
    if (step.other >= 0) {
      at(slots_, step.other) = has;
    } else {
      --at(copies_, has);
      ++at(copies_, step.expert);
    }
    reckon();
  }

  const Numbers& slots() const { return slots_; }

 private:
  double share(std::int64_t expert) const {
    return at(loads_, expert) / static_cast<double>(at(copies_, expert));
  }

  void reckon() {
    std::ranges::fill(busy_, 0.0);
    for (std::int64_t slot = 0; slot < std::ssize(slots_); ++slot)
      at(busy_, slot / size_) += share(at(slots_, slot));
  }

  /// Where ranks are on nodes that have groups of experts of their own.
  bool may_hold(std::int64_t slot, std::int64_t expert) const {
    if (nodes_ == 1) return true;
    const std::int64_t of_node = std::ssize(slots_) / nodes_;
    const auto first = slots_.begin() + slot / of_node * of_node;
    return std::find(first, first + of_node, expert) != first + of_node;
  }
  bool may_swap(std::int64_t a, std::int64_t b) const {
    const std::int64_t of_node = std::ssize(slots_) / nodes_;
    return a / of_node == b / of_node;
  }

  std::set<std::int64_t> experts_to_try(std::int64_t slot, std::int64_t busiest) const {
    const auto first = slots_.begin() + busiest * size_;
    std::set<std::int64_t> experts(first, first + size_);
    if (slot / size_ != busiest) return experts;
    // The busiest rank itself may rather have any that is lighter.
    for (std::int64_t expert = 0; expert < std::ssize(loads_); ++expert) experts.insert(expert);
    return experts;
  }

  std::int64_t cost(const Step& step) const {
    const auto change = [&](std::int64_t slot, std::int64_t to) {
      const std::int64_t before = at(before_, slot);
      return (to != before ? 1 : 0) - (at(slots_, slot) != before ? 1 : 0);
    };
    return change(step.slot, step.expert) + (step.other >= 0 ? change(step.other, at(slots_, step.slot)) : 0);
  }

  /// Fills in what a step brings.
  void weigh(Step& step) {
    const std::int64_t has = at(slots_, step.slot);
    std::vector<double>& busy = trial_;
    busy = busy_;
    if (step.other >= 0) {
      const double more = share(step.expert) - share(has);
      at(busy, step.slot / size_) += more;
      at(busy, step.other / size_) -= more;
    } else {
      const auto copies = [&](std::int64_t expert) { return static_cast<double>(at(copies_, expert)); };
      const double of_has = at(loads_, has) / (copies(has) - 1);
      const double of_new = at(loads_, step.expert) / (copies(step.expert) + 1);
      for (std::int64_t slot = 0; slot < std::ssize(slots_); ++slot) {
        const std::int64_t expert = at(slots_, slot);
        if (slot == step.slot) {
          at(busy, slot / size_) += of_new - share(has);
        } else if (expert == has) {
          at(busy, slot / size_) += of_has - share(has);
        } else if (expert == step.expert) {
          at(busy, slot / size_) += of_new - share(expert);
        }
      }
    }
    const auto squares = [](const std::vector<double>& loads) {
      return std::inner_product(loads.begin(), loads.end(), loads.begin(), 0.0);
    };
    const double mean = mean_ > 0 ? mean_ : 1;
    step.gain = (*std::ranges::max_element(busy_) - *std::ranges::max_element(busy)) / mean;
    step.evener = (squares(busy_) - squares(busy)) / (mean * mean);
  }

  std::vector<double> loads_;
  Numbers before_;
  Numbers slots_;
  std::int64_t nodes_;
  std::int64_t size_;  ///< slots of a rank
  Numbers copies_;
  std::vector<double> busy_;
  std::vector<double> trial_;
  double mean_ = 0;
};

}  // namespace

std::int64_t changed_slots(const ExpertMap& from, const ExpertMap& to) {
  std::int64_t changed = 0;
  for (std::int64_t layer = 0; layer < to.layers(); ++layer) {
    const Numbers& before = at(from.placement.experts_of_slots, layer);
    const Numbers& after = at(to.placement.experts_of_slots, layer);
    for (std::int64_t slot = 0; slot < std::ssize(after); ++slot)
      changed += at(before, slot) != at(after, slot) ? 1 : 0;
  }
  return changed;
}

ExpertMap balance_near(const ExpertLoads& loads, const BalanceShape& shape, const ExpertMap& previous,
                       std::int64_t most) {
  ExpertMap wanted = balance_experts(loads, shape);
  const std::int64_t nodes = shape.hierarchical() ? shape.nodes : 1;
  for (std::int64_t layer = 0; layer < loads.layers; ++layer) {
    Numbers& slots = at(wanted.placement.experts_of_slots, layer);
    slots = renamed(slots, at(previous.placement.experts_of_slots, layer), nodes, shape.ranks);
  }
  std::vector<LayerSearch> layers;
  std::vector<std::optional<LayerSearch::Step>> steps;
  for (std::int64_t layer = 0; layer < loads.layers; ++layer) {
    layers.emplace_back(loads.layer(layer), at(previous.placement.experts_of_slots, layer), shape.ranks,
                        nodes);
    steps.push_back(layers.back().best(most));
  }
  const auto best_of = [](const auto& step) {
    return step ? std::pair(step->worth(), step->evener) : std::pair(-1.0, -1.0);
  };
  for (std::int64_t room = most;;) {
    const auto next = std::ranges::max_element(steps, {}, best_of);
    if (next == steps.end() || !*next) break;
    const auto layer = static_cast<std::size_t>(next - steps.begin());
    if ((*next)->more > room) {
      *next = layers[layer].best(room);
      continue;
    }
    room -= (*next)->more;
    layers[layer].take(**next);
    *next = layers[layer].best(room);
  }
  ExpertMap map{"", loads.experts, shape.slots, shape.ranks, {}};
  for (const LayerSearch& layer : layers) map.placement.experts_of_slots.push_back(layer.slots());
  const bool fits = changed_slots(previous, wanted) <= most;
  return fits && sum_of_imbalances(loads, wanted) < sum_of_imbalances(loads, map) ? wanted : map;
}

}  // namespace weightcast
