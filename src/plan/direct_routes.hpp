#pragma once

#include <cstdint>
#include <vector>

#include "plan/routes.hpp"

namespace weightcast {

/// Whether roots write what they send into their destinations' parameters themselves, without staging, where
/// they reach that memory: on no route, where it pays, or on every route that leaves a rank.
enum class Direct : std::uint8_t { kNever, kAuto, kAlways };

/// Which routes go directly, by route; one whose root is its only destination never does. `reached[i]`: the
/// root of route i reaches the memory of all its destinations. Under kAuto a route with several destinations
/// goes directly only if that makes no root's link busier than links of receivers are in any case: a root
/// sends it once for each destination, where a broadcast has receivers pass it on.
std::vector<bool> choose_direct(const std::vector<Route>& routes, const std::vector<bool>& reached,
                                Direct direct);

/// The destinations of a route other than its root.
std::vector<int> others_of(const Route& route);

}  // namespace weightcast
