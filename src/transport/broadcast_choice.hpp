#pragma once

#include <cstddef>
#include <vector>

#include "transport/transport.hpp"

namespace weightcast {

/// The ranks that a root sends to: the destinations other than itself.
std::vector<int> receivers_of(const Route& route);

/// Which routes get a communicator of their own: those with at least `least_receivers` (1 or 2), as long as
/// none of their ranks is in more than eight, because every communicator costs memory and set-up time on each
/// member. Where a broadcast saves most comes first. The same choice on every rank, because it looks at all
/// routes.
std::vector<bool> choose_broadcasts(const std::vector<Route>& routes, int ranks, std::size_t least_receivers);

}  // namespace weightcast
