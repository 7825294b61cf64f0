#pragma once

#include <cstdint>

#include "model/expert_balance.hpp"
#include "model/expert_map.hpp"

namespace weightcast {

/// How many slots of all layers together hold another expert.
std::int64_t changed_slots(const ExpertMap& from, const ExpertMap& to);

/// A map in which at most `most` slots of all layers together hold another expert than in `previous`, a map
/// of the same sizes. Slots of `previous` are changed step by step, a spare slot to another expert or two
/// slots of different ranks with one another, always where one changed slot takes most off the busiest rank
/// of a layer, in units of that layer's mean, while any takes something. Where the shape is hierarchical, an
/// expert stays on the nodes that have it. The balancer's own answer (balance_experts()), with nodes, ranks
/// and slots renamed to be as near to `previous` as they can, takes the place of that where it needs no more
/// slots and has the lower mean of imbalances(). Throws as balance_experts().
ExpertMap balance_near(const ExpertLoads& loads, const BalanceShape& shape, const ExpertMap& previous,
                       std::int64_t most);

}  // namespace weightcast
