#include "plan/routes.hpp"

#include <map>
#include <utility>

namespace weightcast {

Routes routes_of(const Plan& plan) {
  Routes result;
  std::map<std::pair<std::uint32_t, std::uint32_t>, std::size_t> numbers;
  for (const Bucket& bucket : plan.buckets) {
    const auto [found, fresh] =
        numbers.emplace(std::pair(bucket.root, bucket.destinations), result.routes.size());
    if (fresh) {
      Route& route = result.routes.emplace_back(Route{static_cast<int>(bucket.root), {}, 0});
      for (const std::int64_t rank : plan.destination_ranks(bucket.destinations)) {
        route.destinations.push_back(static_cast<int>(rank));
      }
    }
    result.routes[found->second].bytes += bucket.bytes;
    result.of_bucket.push_back(found->second);
  }
  return result;
}

}  // namespace weightcast
