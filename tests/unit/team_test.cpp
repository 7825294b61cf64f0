#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "sys/team.hpp"

namespace weightcast {

namespace {

using namespace std::chrono_literals;

/// Waits until `ready()` holds; whether it did in time.
template <typename Ready>
bool wait_for(Ready ready) {
  const auto give_up = std::chrono::steady_clock::now() + 30s;
  while (!ready() && std::chrono::steady_clock::now() < give_up) std::this_thread::yield();
  return ready();
}

class TeamTest : public ::testing::TestWithParam<int> {};

TEST_P(TeamTest, EveryTaskIsDoneOnceListAfterList) {
  Team team(GetParam());
  EXPECT_EQ(team.threads(), GetParam());
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
    if (i > 10) std::this_thread::sleep_for(1ms);
    ++done;
  };
  EXPECT_THROW(team.run(20'000, fail_at_ten), std::runtime_error);
  EXPECT_GE(done, 10);
  EXPECT_LT(done, 19'999);
  done = 0;
  team.run(10, fail_at_ten);
  EXPECT_EQ(done, 10);
}

TEST_P(TeamTest, AFailureLeavesTheOtherListsAlone) {
  Team team(GetParam());
  std::atomic<int> done = 0;
  const auto count = [&](std::size_t) { ++done; };
  Team::Job before(team, 100, count);
  Team::Job failing(team, 100, [](std::size_t) { throw std::runtime_error("failing"); });
  Team::Job after(team, 100, count);
  before.finish();
  EXPECT_THROW(failing.finish(), std::runtime_error);
  after.finish();
  EXPECT_EQ(done, 200);
}

TEST_P(TeamTest, AListThatIsDroppedIsNotTouchedAnyMore) {
  Team team(GetParam());
  for (int round = 0; round < 200; ++round) {
    auto times = std::make_unique<std::vector<std::atomic<int>>>(50);
    std::optional<Team::Job> first(std::in_place, team, times->size(),
                                   [&](std::size_t i) { ++times->at(i); });
    const Team::Job second(team, times->size(), [&](std::size_t i) { ++times->at(i); });
    if (round % 2 == 0) first->finish();
    first.reset();
  }
}

/// Lists overlap as buckets that are read ahead do: some fail, some are dropped, all others are done once.
TEST_P(TeamTest, ManyListsAtOnce) {
  struct List {
    std::vector<std::atomic<int>> times;
    std::size_t failing;
    std::optional<Team::Job> job;

    List(std::size_t count, std::size_t bad) : times(count), failing(bad) {}
  };
  Team team(GetParam());
  std::mt19937 random(7);
  std::deque<std::unique_ptr<List>> lists;
  for (int number = 0; number < 3000; ++number) {
    const std::size_t count = random() % 20;
    const bool fails = random() % 8 == 0;
    lists.push_back(std::make_unique<List>(count, fails ? random() % 20 : count));
    List& list = *lists.back();
    list.job.emplace(team, count, [&list](std::size_t i) {
      if (i == list.failing) throw std::runtime_error("failing");
      ++list.times.at(i);
    });
    if (lists.size() < 4) continue;
    List& oldest = *lists.front();
    if (random() % 16 == 0) {
      lists.clear();
    } else if (oldest.failing < oldest.times.size()) {
      EXPECT_THROW(oldest.job->finish(), std::runtime_error);
      lists.pop_front();
    } else {
      oldest.job->finish();
      for (const auto& each : oldest.times) ASSERT_EQ(each, 1);
      lists.pop_front();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, TeamTest, ::testing::Values(1, 2, 5));

TEST(TeamTest, ThreadsWorkAtTheSameTime) {
  Team team(3);
  // Each waits until all three are there.
  std::atomic<int> there = 0;
  std::atomic<int> alone = 0;
  team.run(3, [&](std::size_t) {
    ++there;
    if (!wait_for([&] { return there >= 3; })) ++alone;
  });
  EXPECT_EQ(alone, 0);
}

TEST(TeamTest, AThreadWithoutATaskGoesOnWithTheNextList) {
  Team team(2);
  // The first list's only task ends when the second list has been worked through.
  std::atomic<int> done = 0;
  std::atomic<bool> in_time = false;
  Team::Job first(team, 1, [&](std::size_t) { in_time = wait_for([&] { return done == 10; }); });
  Team::Job second(team, 10, [&](std::size_t) { ++done; });
  first.finish();
  EXPECT_TRUE(in_time);
  second.finish();
}

}  // namespace

}  // namespace weightcast
