#include "transport/broadcast_choice.hpp"

#include <algorithm>
#include <numeric>

namespace weightcast {

std::vector<int> receivers_of(const Route& route) {
  std::vector<int> ranks;
  std::copy_if(route.destinations.begin(), route.destinations.end(), std::back_inserter(ranks),
               [&](int rank) { return rank != route.root; });
  return ranks;
}

std::vector<bool> choose_broadcasts(const std::vector<Route>& routes, int ranks,
                                    std::size_t least_receivers) {
  constexpr int kMostCommunicators = 8;
  std::vector<std::vector<int>> receivers;
  receivers.reserve(routes.size());
  for (const Route& route : routes) receivers.push_back(receivers_of(route));
  std::vector<std::size_t> order(routes.size());
  std::iota(order.begin(), order.end(), 0);
  const auto saved = [&](std::size_t route) {
    return routes[route].bytes * (static_cast<std::int64_t>(receivers[route].size()) - 1);
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return saved(a) > saved(b); });
  std::vector<bool> chosen(routes.size(), false);
  std::vector<int> count(static_cast<std::size_t>(ranks), 0);
  const auto has_room = [&](int rank) {
    return count.at(static_cast<std::size_t>(rank)) < kMostCommunicators;
  };
  for (const std::size_t route : order) {
    if (receivers[route].size() < least_receivers) continue;
    std::vector<int> members = receivers[route];
    members.push_back(routes[route].root);
    chosen[route] = std::all_of(members.begin(), members.end(), has_room);
    if (!chosen[route]) continue;
    for (const int rank : members) ++count.at(static_cast<std::size_t>(rank));
  }
  return chosen;
}

}  // namespace weightcast
