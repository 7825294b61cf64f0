#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "plan/plan.hpp"

namespace weightcast {

/// Puts the queues of all roots, `queues[root]`, into one order, made of steps: in a step each root serves
/// at most one destination set and no destination hears two roots, because two transfers over one link at a
/// time are slower than one after the other. In each step the roots choose in turn, the one with most left
/// first; a root takes the first bucket of its queue whose destinations are still free. A bucket that a rank
/// hands to itself alone takes no link.
std::vector<Bucket> order_in_steps(const Plan& plan, const std::vector<std::vector<Bucket>>& queues);

/// How well a plan's order uses the links: each trainer that sends has one, and so has each destination.
struct StepCounts {
  std::int64_t steps = 0;  ///< in which at least one bucket travels
  /// Fewer are not possible: the buckets of the link that has most of them.
  std::int64_t least = 0;
  /// Steps in which a link idles although it has buckets left.
  std::int64_t with_idle_link = 0;
};

/// By step in the order of `plan.buckets`, the links that carry a bucket: trainer t's is number t, that into
/// coordinate c number trainers + c.
std::vector<std::vector<std::size_t>> links_by_step(const Plan& plan);

/// Counts the steps of `plan.buckets`. All replicas are served alike, so a coordinate stands for its ranks.
StepCounts count_steps(const Plan& plan);

}  // namespace weightcast
