#pragma once

#include <cstdint>
#include <vector>

#include "plan/plan.hpp"

namespace weightcast {

/// Runs of consecutive buckets that may travel at once, as the first bucket of each run and one behind the
/// last: no rank takes part in more than half of its staging buffers' worth of those that travel (rounded
/// up), so that the next run is packed while this one travels, nor in more of all than it has buffers. Unless
/// ranks are colocated, and so send to all their peers at once, the roots of a run differ; routes do in any
/// case. The same on every rank.
std::vector<std::uint32_t> concurrent_batches(const Plan& plan);

/// The limits as they hold for a plan of which `share` of the bytes, from 0 to 1, travel. Where colocated
/// ranks send more than a little to each other, each sends to all its peers at once, and hears all of them,
/// while the next of these are packed and the last are unpacked: the staging that the user allowed is divided
/// into as many buffers as that takes, but into none in which a link would not become fast.
Limits divided_for_peers(const Topology& topology, const Limits& limits, double share);

}  // namespace weightcast
