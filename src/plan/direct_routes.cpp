#include "plan/direct_routes.hpp"

#include <algorithm>
#include <cstddef>
#include <map>

namespace weightcast {

namespace {

/// The most bytes that any rank sends and receives, were these routes direct.
struct Busiest {
  std::int64_t sent = 0;
  std::int64_t received = 0;
};

Busiest busiest_of(const std::vector<Route>& routes, const std::vector<bool>& direct) {
  std::map<int, Busiest> of_rank;
  Busiest most;
  for (std::size_t i = 0; i < routes.size(); ++i) {
    if (!direct[i]) continue;
    for (const int rank : others_of(routes[i])) {
      most.sent = std::max(most.sent, of_rank[routes[i].root].sent += routes[i].bytes);
      most.received = std::max(most.received, of_rank[rank].received += routes[i].bytes);
    }
  }
  return most;
}

}  // namespace

std::vector<int> others_of(const Route& route) {
  std::vector<int> others;
  for (const int rank : route.destinations) {
    if (rank != route.root) others.push_back(rank);
  }
  return others;
}

std::vector<bool> choose_direct(const std::vector<Route>& routes, const std::vector<bool>& reached,
                                Direct direct) {
  std::vector<bool> chosen(routes.size(), false);
  if (direct == Direct::kNever) return chosen;
  for (std::size_t i = 0; i < routes.size(); ++i) {
    chosen[i] = reached[i] && !others_of(routes[i]).empty();
  }
  if (direct == Direct::kAlways) return chosen;
  // So little more than receivers' links carry is not worth communicators, and buckets of their own kind.
  constexpr double kMore = 1.1;
  const Busiest busiest = busiest_of(routes, chosen);
  if (static_cast<double>(busiest.sent) <= kMore * static_cast<double>(busiest.received)) return chosen;
  for (std::size_t i = 0; i < routes.size(); ++i) {
    if (others_of(routes[i]).size() > 1) chosen[i] = false;
  }
  return chosen;
}

}  // namespace weightcast
