#pragma once

#include <cstdint>
#include <vector>

#include "plan/plan.hpp"

namespace weightcast {

/// Runs of consecutive buckets that may travel at once, as the first bucket of each run and one behind the
/// last: the roots of a run differ, and no rank takes part in more than half of its staging buffers' worth of
/// them (rounded up), so that the next run is packed while this one travels. The same on every rank.
std::vector<std::uint32_t> concurrent_batches(const Plan& plan);

}  // namespace weightcast
