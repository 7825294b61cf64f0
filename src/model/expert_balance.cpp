#include "model/expert_balance.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <queue>
#include <utility>

#include "core/error.hpp"
#include "core/text.hpp"
#include "model/map_fields.hpp"
#include "model/sharding.hpp"

namespace weightcast {

namespace {

using nlohmann::json;
using Numbers = std::vector<std::int64_t>;

constexpr const char* kLoadRemedy = "write the loads anew, as [layers][experts]";

template <typename Value>
const Value& at(const std::vector<Value>& values, std::int64_t index) {
  return values[static_cast<std::size_t>(index)];
}

/// The numbers of the things in each of `packs` packs, in the order in which they came there.
std::vector<Numbers> pack(const std::vector<float>& loads, std::int64_t packs) {
  const auto count = static_cast<std::int64_t>(loads.size());
  const std::int64_t room = count / packs;
  std::vector<Numbers> packed(static_cast<std::size_t>(packs));
  Numbers order(loads.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  if (room == 1) {
    for (const std::int64_t thing : order) packed[static_cast<std::size_t>(thing)] = {thing};
    return packed;
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int64_t a, std::int64_t b) { return at(loads, a) > at(loads, b); });
  using Pack = std::pair<float, std::int64_t>;  // load and number
  std::priority_queue<Pack, std::vector<Pack>, std::greater<>> open;
  for (std::int64_t number = 0; number < packs; ++number) open.emplace(0.0F, number);
  for (const std::int64_t thing : order) {
    const auto [load, number] = open.top();
    open.pop();
    Numbers& things = packed[static_cast<std::size_t>(number)];
    things.push_back(thing);
    if (static_cast<std::int64_t>(things.size()) < room) open.emplace(load + at(loads, thing), number);
  }
  return packed;
}

/// Copies of some experts: which of them each is of, and the load that it takes over.
struct Copies {
  Numbers of;
  std::vector<float> loads;
};

/// One copy of each expert, and spare ones, `slots` together.
Copies copy_experts(const std::vector<float>& loads, std::int64_t slots) {
  const auto experts = static_cast<std::int64_t>(loads.size());
  Numbers counts(loads.size(), 1);
  Copies copies;
  copies.of.resize(loads.size());
  std::iota(copies.of.begin(), copies.of.end(), std::int64_t{0});
  std::priority_queue<std::pair<float, std::int64_t>> busiest;  // load of a copy, and the negated expert
  for (std::int64_t expert = 0; expert < experts; ++expert) busiest.emplace(at(loads, expert), -expert);
  const auto share = [&](std::int64_t expert) {
    return at(loads, expert) / static_cast<float>(at(counts, expert));
  };
  for (std::int64_t slot = experts; slot < slots; ++slot) {
    const std::int64_t expert = -busiest.top().second;
    busiest.pop();
    copies.of.push_back(expert);
    ++counts[static_cast<std::size_t>(expert)];
    busiest.emplace(share(expert), -expert);
  }
  for (const std::int64_t expert : copies.of) copies.loads.push_back(share(expert));
  return copies;
}

/// The experts in the slots of one layer.
Numbers balance_layer(std::span<const float> loads, const BalanceShape& shape) {
  const auto experts = static_cast<std::int64_t>(loads.size());
  const std::int64_t group_size = experts / shape.groups;
  std::vector<float> groups;
  for (std::int64_t group = 0; group < shape.groups; ++group) {
    const auto of_group =
        loads.subspan(static_cast<std::size_t>(group * group_size), static_cast<std::size_t>(group_size));
    groups.push_back(std::accumulate(of_group.begin(), of_group.end(), 0.0F));
  }
  Numbers slots;
  for (const Numbers& on_node : pack(groups, shape.nodes)) {
    Numbers of_node;  // experts
    std::vector<float> loads_of_node;
    for (const std::int64_t group : on_node) {
      for (std::int64_t expert = group * group_size; expert < (group + 1) * group_size; ++expert) {
        of_node.push_back(expert);
        loads_of_node.push_back(loads[static_cast<std::size_t>(expert)]);
      }
    }
    const Copies copies = copy_experts(loads_of_node, shape.slots / shape.nodes);
    for (const Numbers& on_rank : pack(copies.loads, shape.ranks / shape.nodes)) {
      for (const std::int64_t copy : on_rank) slots.push_back(at(of_node, at(copies.of, copy)));
    }
  }
  return slots;
}

void require_fit(const ExpertLoads& loads, const BalanceShape& shape) {
  require_divides("--ranks", "ranks", shape.ranks, "the slots of a layer", shape.slots);
  require_divides("--nodes", "nodes", shape.nodes, "the ranks", shape.ranks);
  if (shape.hierarchical()) {
    require_divides("--groups", "groups", shape.groups, "the experts of " + loads.origin, loads.experts);
  }
  if (shape.slots < loads.experts) {
    throw UsageError(
        fmt::format("--slots: {} are too few for the {} experts of {}; give at least one for each",
                    shape.slots, loads.experts, loads.origin));
  }
  if (shape.slots > kMostMapSlots / loads.layers) {
    throw UsageError(fmt::format("--slots: {} in each of {} layers are more than the {} that a map may have",
                                 shape.slots, loads.layers, kMostMapSlots));
  }
}

}  // namespace

ExpertLoads parse_expert_loads(const std::string& text, const std::string& origin) {
  JsonLimits limits = kMapLimits;
  limits.python_numbers = true;
  limits.list = true;
  const json lists = parse_json(text, origin, limits);
  const auto refuse = [&](const std::string& what) {
    throw InputError(fmt::format("{}: {}; {}", origin, what, kLoadRemedy));
  };
  ExpertLoads loads{origin, static_cast<std::int64_t>(lists.size()), 0, {}};
  if (lists.empty()) refuse("has no layers");
  for (std::size_t layer = 0; layer < lists.size(); ++layer) {
    const json& list = lists[layer];
    if (!list.is_array() || list.empty())
      refuse(fmt::format("layer {}: is no list of experts' loads", layer));
    if (layer == 0) loads.experts = static_cast<std::int64_t>(list.size());
    if (list.size() != static_cast<std::size_t>(loads.experts)) {
      refuse(fmt::format("layer {}: has loads of {} experts, but layer 0 of {}", layer, list.size(),
                         loads.experts));
    }
    double sum = 0;
    for (std::size_t expert = 0; expert < list.size(); ++expert) {
      const json& value = list[expert];
      // Parsed without error, a number is finite.
      if (!value.is_number() || value.get<double>() < 0) {
        refuse(fmt::format("layer {}, expert {}: {} is no load, a number from 0 on", layer, expert,
                           excerpt(value.dump())));
      }
      sum += value.get<double>();
      loads.values.push_back(value.get<float>());
    }
    constexpr double kMostLoad = 1e38;
    if (!(sum <= kMostLoad)) refuse(fmt::format("layer {}: its loads add up to more than 1e38", layer));
  }
  return loads;
}

ExpertMap balance_experts(const ExpertLoads& loads, const BalanceShape& shape) {
  require_fit(loads, shape);
  const BalanceShape used = shape.hierarchical() ? shape : BalanceShape{shape.slots, 1, 1, shape.ranks};
  ExpertMap map{"", loads.experts, shape.slots, shape.ranks, {}};
  for (std::int64_t layer = 0; layer < loads.layers; ++layer)
    map.placement.experts_of_slots.push_back(balance_layer(loads.layer(layer), used));
  return map;
}

std::vector<double> imbalances(const ExpertLoads& loads, const ExpertMap& map) {
  const std::int64_t slots_of_rank = map.slots / map.ep;
  std::vector<double> result;
  for (std::int64_t layer = 0; layer < loads.layers; ++layer) {
    const std::span<const float> of_layer = loads.layer(layer);
    const Numbers& slots = at(map.placement.experts_of_slots, layer);
    Numbers copies(of_layer.size());
    for (const std::int64_t expert : slots) ++copies[static_cast<std::size_t>(expert)];
    std::vector<double> ranks(static_cast<std::size_t>(map.ep));
    for (std::int64_t slot = 0; slot < map.slots; ++slot) {
      const std::int64_t expert = at(slots, slot);
      ranks[static_cast<std::size_t>(slot / slots_of_rank)] +=
          static_cast<double>(of_layer[static_cast<std::size_t>(expert)]) /
          static_cast<double>(at(copies, expert));
    }
    const double all = std::accumulate(ranks.begin(), ranks.end(), 0.0);
    const double busiest = *std::max_element(ranks.begin(), ranks.end());
    result.push_back(all > 0 ? busiest * static_cast<double>(map.ep) / all : 1.0);
  }
  return result;
}

}  // namespace weightcast
