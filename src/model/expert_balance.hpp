#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "model/expert_map.hpp"

namespace weightcast {

/// How much each expert of each layer has to do, in tokens or any other unit.
struct ExpertLoads {
  std::string origin;  ///< the file
  std::int64_t layers = 0;
  std::int64_t experts = 0;
  std::vector<float> values = {};  ///< [layers, experts]

  std::span<const float> layer(std::int64_t number) const {
    return std::span(values).subspan(static_cast<std::size_t>(number * experts),
                                     static_cast<std::size_t>(experts));
  }
};

/// Reads `[[load of expert 0, …], …]`, one list a layer. Throws InputError that names `origin`, the layer and
/// the expert: no lists, lists of other lengths, none at all, loads that are negative or no numbers, loads of
/// a layer that add up to more than 1e38 (they are computed with as float32).
ExpertLoads parse_expert_loads(const std::string& text, const std::string& origin);

/// Where the copies of experts may go, as `weightcast balance` is told.
struct BalanceShape {
  std::int64_t slots = 1;   ///< of a layer, on all ranks together
  std::int64_t groups = 1;  ///< of the model's routing: experts of a group are neighbours
  std::int64_t nodes = 1;
  std::int64_t ranks = 1;

  /// Whether every node gets whole groups. Otherwise groups and nodes do not count.
  bool hierarchical() const { return groups % nodes == 0; }
};

/// The map that the published expert-parallel load balancer gives (deepseek-ai/EPLB, rebalance_experts), with
/// epoch 0. It computes in float32, in the published order; of equal values the one with the lowest index
/// comes first. With whole groups on nodes: groups are packed to nodes, then the experts of each node get its
/// slots and ranks. Otherwise all experts get all slots. Packing takes things by falling load and gives each
/// to the pack with least load that has room, every pack as many. Spare slots go one after the other to the
/// expert whose load ÷ copies is largest.
///
/// Throws UsageError naming an option of `balance` for sizes that do not divide one another, fewer slots than
/// experts, or more than a map may have.
ExpertMap balance_experts(const ExpertLoads& loads, const BalanceShape& shape);

/// For each layer the load of the busiest rank ÷ the ranks' mean, where copies of an expert share its load
/// evenly. 1 for a layer without load. The map is of the same layers and experts.
std::vector<double> imbalances(const ExpertLoads& loads, const ExpertMap& map);

}  // namespace weightcast
