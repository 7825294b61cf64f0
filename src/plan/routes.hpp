#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "plan/plan.hpp"

namespace weightcast {

/// One trainer rank and the ranks that need the same bytes, as world ranks. The root may be among the
/// destinations (colocated): it keeps what it has.
struct Route {
  int root = 0;
  std::vector<int> destinations;
  std::int64_t bytes = 0;  ///< of an update; says where a broadcast pays most
};

/// The routes of a plan, numbered in the order of their first buckets.
struct Routes {
  std::vector<Route> routes;
  std::vector<std::size_t> of_bucket;  ///< the number of each bucket's route
};

Routes routes_of(const Plan& plan);

}  // namespace weightcast
