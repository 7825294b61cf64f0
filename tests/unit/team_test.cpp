#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "session/team.hpp"

namespace weightcast {

namespace {

class TeamTest : public ::testing::TestWithParam<int> {};

TEST_P(TeamTest, EveryTaskIsDoneOnceListAfterList) {
  Team team(GetParam());
  for (const std::size_t count : {0, 1, 2, 7, 1000}) {
    for (int list = 0; list < 20; ++list) {
      std::vector<std::atomic<int>> times(count);
      team.run(count, [&](std::size_t i) { ++times.at(i); });
      for (const auto& each : times) ASSERT_EQ(each, 1);
    }
  }
}

TEST_P(TeamTest, WhatATaskThrowsComesOutAndTheNextListIsFine) {
  Team team(GetParam());
  std::atomic<int> done = 0;
  const auto fail_at_ten = [&](std::size_t i) {
    if (i == 10) throw std::runtime_error("ten");
    if (i > 10) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    ++done;
  };
  EXPECT_THROW(team.run(20'000, fail_at_ten), std::runtime_error);
  EXPECT_GE(done, 10);
  EXPECT_LT(done, 19'999);
  done = 0;
  team.run(10, fail_at_ten);
  EXPECT_EQ(done, 10);
}

INSTANTIATE_TEST_SUITE_P(Threads, TeamTest, ::testing::Values(1, 2, 5));

TEST(TeamTest, ThreadsWorkAtTheSameTime) {
  using namespace std::chrono_literals;
  Team team(3);
  // Each waits until all three are there.
  std::atomic<int> there = 0;
  std::atomic<int> alone = 0;
  team.run(3, [&](std::size_t) {
    ++there;
    const auto give_up = std::chrono::steady_clock::now() + 30s;
    while (there < 3 && std::chrono::steady_clock::now() < give_up) std::this_thread::yield();
    if (there < 3) ++alone;
  });
  EXPECT_EQ(alone, 0);
}

}  // namespace

}  // namespace weightcast
