// Maps near the one that engines have: few slots change, and these where it helps most.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <set>
#include <vector>

#include "model/near_balance.hpp"

namespace weightcast {

namespace {

ExpertLoads loads_of(std::mt19937& random, std::int64_t layers, std::int64_t experts) {
  ExpertLoads loads{"test", layers, experts, {}};
  for (std::int64_t i = 0; i < layers * experts; ++i)
    loads.values.push_back(static_cast<float>(1 + random() % 100 * (random() % 5 == 0 ? 8 : 1)));
  return loads;
}

double worst(const ExpertLoads& loads, const ExpertMap& map) {
  return std::ranges::max(imbalances(loads, map));
}

void expect_all_experts(const ExpertMap& map) {
  for (const auto& slots : map.placement.experts_of_slots) {
    EXPECT_EQ(static_cast<std::int64_t>(slots.size()), map.slots);
    EXPECT_EQ(static_cast<std::int64_t>(std::set(slots.begin(), slots.end()).size()), map.experts);
  }
}

TEST(NearBalance, WithoutMovesNothingChanges) {
  std::mt19937 random(1);
  const ExpertLoads loads = loads_of(random, 3, 8);
  const ExpertMap before = first_expert_map(3, 8, 12, 4);
  EXPECT_EQ(changed_slots(before, balance_near(loads, {12, 1, 1, 4}, before, 0)), 0);
}

TEST(NearBalance, WithEnoughMovesItIsAsGoodAsTheBalancersAnswer) {
  std::mt19937 random(2);
  for (int turn = 0; turn < 20; ++turn) {
    for (const BalanceShape& shape : {BalanceShape{16, 1, 1, 4}, BalanceShape{16, 4, 2, 4}}) {
      const ExpertLoads loads = loads_of(random, 1, 12);
      const ExpertMap before = balance_experts(loads_of(random, 1, 12), shape);
      const ExpertMap free = balance_experts(loads, shape);
      const ExpertMap near = balance_near(loads, shape, before, 16);
      expect_all_experts(near);
      EXPECT_LE(worst(loads, near), worst(loads, free) + 1e-9);
      EXPECT_LE(changed_slots(before, near), 16);
    }
  }
}

TEST(NearBalance, NodesRanksAndSlotsHaveNoNames) {
  // The balancer's answer, its nodes, ranks and slots turned round, needs no move.
  std::mt19937 random(6);
  const BalanceShape shape{16, 4, 2, 4};
  const ExpertLoads loads = loads_of(random, 1, 12);
  ExpertMap before = balance_experts(loads, shape);
  std::ranges::reverse(before.placement.experts_of_slots.front());
  const ExpertMap near = balance_near(loads, shape, before, 16);
  EXPECT_LE(changed_slots(before, near), 4);
  EXPECT_LE(worst(loads, near), worst(loads, before));
}

TEST(NearBalance, MoreMovesAreNeverWorseAndNeverTooMany) {
  std::mt19937 random(3);
  for (int turn = 0; turn < 20; ++turn) {
    const ExpertLoads loads = loads_of(random, 1, 16);
    const ExpertMap before = first_expert_map(1, 16, 24, 8);
    double last = worst(loads, before);
    for (const std::int64_t most : {1, 2, 3, 5}) {
      const ExpertMap map = balance_near(loads, {24, 1, 1, 8}, before, most);
      expect_all_experts(map);
      EXPECT_LE(changed_slots(before, map), most);
      EXPECT_LE(worst(loads, map), last + 1e-6) << most;
      last = worst(loads, map);
    }
  }
}

TEST(NearBalance, OneMoveIsTheBestOneThatThereIs) {
  std::mt19937 random(4);
  for (int turn = 0; turn < 50; ++turn) {
    const ExpertLoads loads = loads_of(random, 1, 6);
    const ExpertMap before = first_expert_map(1, 6, 9, 3);
    double least = worst(loads, before);
    for (std::size_t slot = 0; slot < 9; ++slot) {
      for (std::int64_t expert = 0; expert < 6; ++expert) {
        ExpertMap map = before;
        auto& slots = map.placement.experts_of_slots.front();
        slots[slot] = expert;
        if (std::set(slots.begin(), slots.end()).size() == 6) least = std::min(least, worst(loads, map));
      }
    }
    EXPECT_NEAR(worst(loads, balance_near(loads, {9, 1, 1, 3}, before, 1)), least, 1e-6);
  }
}

TEST(NearBalance, GroupsStayOnTheirNodes) {
  std::mt19937 random(5);
  const BalanceShape shape{16, 4, 2, 4};
  const ExpertMap before = balance_experts(loads_of(random, 1, 12), shape);
  const auto of_node = [](const ExpertMap& map, int node) {
    const auto& slots = map.placement.experts_of_slots.front();
    return std::set<std::int64_t>(slots.begin() + node * 8, slots.begin() + node * 8 + 8);
  };
  for (int turn = 0; turn < 20; ++turn) {
    const ExpertMap map = balance_near(loads_of(random, 1, 12), shape, before, 3);
    EXPECT_EQ(of_node(map, 0), of_node(before, 0));
    EXPECT_EQ(of_node(map, 1), of_node(before, 1));
  }
}

}  // namespace

}  // namespace weightcast
