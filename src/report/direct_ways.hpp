#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace weightcast {

/// Which way the routes go that leave a rank, and their bytes, counted once for each route.
struct DirectWays {
  std::int64_t direct_routes = 0;
  std::int64_t direct_bytes = 0;
  std::int64_t nccl_routes = 0;
  std::int64_t nccl_bytes = 0;
  /// On rank 0: why roots do not reach the memory of destinations, a line for each pair.
  std::vector<std::string> obstacles;
};

}  // namespace weightcast
