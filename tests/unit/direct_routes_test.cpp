// Which routes of a plan go directly.

#include <gtest/gtest.h>

#include <vector>

#include "plan/direct_routes.hpp"
#include "plan_cases.hpp"

namespace weightcast {

namespace {

using Flags = std::vector<bool>;

Flags all(std::size_t count, bool value) {
  return Flags(count, value);
}

TEST(DirectRoutes, NeverIsNever) {
  EXPECT_EQ(choose_direct({{0, {1}, 100}}, {true}, Direct::kNever), Flags{false});
}

TEST(DirectRoutes, OneDestinationThatIsReached) {
  const std::vector<Route> routes{{0, {2}, 100}, {1, {3}, 100}, {0, {3}, 5}};
  for (const Direct direct : {Direct::kAuto, Direct::kAlways}) {
    EXPECT_EQ(choose_direct(routes, {true, true, true}, direct), all(3, true));
    EXPECT_EQ(choose_direct(routes, {true, false, true}, direct), (Flags{true, false, true}));
  }
}

TEST(DirectRoutes, WhatStaysOnARankGoesNoWay) {
  EXPECT_EQ(choose_direct({{0, {0}, 100}, {1, {0, 1}, 100}}, {true, true}, Direct::kAlways),
            (Flags{false, true}));
}

TEST(DirectRoutes, OneRootLeavesReplicasToABroadcast) {
  // What one destination needs alone goes directly all the same.
  const std::vector<Route> routes{{0, {1, 2, 3}, 100}, {0, {2}, 7}};
  EXPECT_EQ(choose_direct(routes, {true, true}, Direct::kAuto), (Flags{false, true}));
  EXPECT_EQ(choose_direct(routes, {true, true}, Direct::kAlways), all(2, true));
}

TEST(DirectRoutes, AsManyRootsAsReplicasServeThemDirectly) {
  const std::vector<Route> routes{{0, {2, 3}, 100}, {1, {2, 3}, 100}};
  EXPECT_EQ(choose_direct(routes, {true, true}, Direct::kAuto), all(2, true));
  // Not where one of them cannot: then the other would send everything twice, and its receivers pass nothing
  // on.
  EXPECT_EQ(choose_direct(routes, {true, false}, Direct::kAuto), all(2, false));
}

TEST(DirectRoutes, OfWholePlans) {
  const auto family = plan_cases::small_moe().family();
  const auto chosen = [&](const Topology& topology) {
    const Plan plan = make_plan(*family, topology, plan_cases::capped(64 << 10));
    const std::vector<Route> routes = routes_of(plan).routes;
    return choose_direct(routes, all(routes.size(), true), Direct::kAuto);
  };
  const auto all_go = [](const Flags& flags) {
    return std::ranges::all_of(flags, [](bool flag) { return flag; });
  };
  EXPECT_TRUE(all_go(chosen(plan_cases::topology_of(1, "tp=1"))));
  EXPECT_TRUE(all_go(chosen(plan_cases::topology_of(2, "tp=2,ep=2"))));
  EXPECT_TRUE(all_go(chosen(plan_cases::topology_of(2, "replicas=2"))));
  EXPECT_EQ(chosen(plan_cases::topology_of(1, "replicas=3")), Flags{false});
}

}  // namespace

}  // namespace weightcast
