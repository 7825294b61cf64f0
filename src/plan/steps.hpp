#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "plan/plan.hpp"

namespace weightcast {

/// Puts the queues of all roots, `queues[root]`, into one order, made of steps: in a step each root serves
/// one destination set at most and no destination hears two roots, because links that are shared in a moment
/// give less than links that are not. Each root takes the first of its queue that nobody else's destinations
/// stand against, the root with most left first. What a rank hands to itself alone takes no link.
std::vector<Bucket> order_in_steps(const Plan& plan, const std::vector<std::vector<Bucket>>& queues);

/// What a plan's order leaves to the links: one out of each trainer that sends, one into each destination.
struct StepCounts {
  std::int64_t steps = 0;  ///< that anything travels in
  /// That the link with most buckets alone needs.
  std::int64_t least = 0;
  /// In which some link idles that has something to carry in a later step.
  std::int64_t with_idle_link = 0;
};

/// Of the order of `plan.buckets`. All replicas are served alike: a coordinate stands for its ranks.
StepCounts count_steps(const Plan& plan);

}  // namespace weightcast
