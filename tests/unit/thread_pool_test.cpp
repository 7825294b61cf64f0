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

#include "sys/thread_pool.hpp"

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
  ThreadPool pool(GetParam());
  EXPECT_EQ(pool.threads(), GetParam());
  for (const std::size_t count : {0, 1, 2, 7, 1000}) {
    for (int list = 0; list < 20; ++list) {
      std::vector<std::atomic<int>> times(count);
      pool.run(count, [&](std::size_t i) { ++times.at(i); });
      for (const auto& each : times) ASSERT_EQ(each, 1);
    }
  }
}

TEST_P(TeamTest, WhatATaskThrowsComesOutAndTheNextListIsFine) {
  ThreadPool pool(GetParam());
  std::atomic<int> done = 0;
  const auto fail_at_ten = [&](std::size_t i) {
    if (i == 10) throw std::runtime_error("ten");
    if (i > 10) std::this_thread::sleep_for(1ms);
    ++done;
  };
  EXPECT_THROW(pool.run(20'000, fail_at_ten), std::runtime_error);
  EXPECT_GE(done, 10);
  EXPECT_LT(done, 19'999);
  done = 0;
  pool.run(10, fail_at_ten);
  EXPECT_EQ(done, 10);
}

TEST_P(TeamTest, AFailureLeavesTheOtherListsAlone) {
  ThreadPool pool(GetParam());
  std::atomic<int> done = 0;
  const auto count = [&](std::size_t) { ++done; };
  ThreadPool::Job before(pool, 100, count);
  ThreadPool::Job failing(pool, 100, [](std::size_t) { throw std::runtime_error("failing"); });
  ThreadPool::Job after(pool, 100, count);
  before.finish();
  EXPECT_THROW(failing.finish(), std::runtime_error);
  after.finish();
  EXPECT_EQ(done, 200);
}

TEST_P(TeamTest, AListThatIsDroppedIsNotTouchedAnyMore) {
  ThreadPool pool(GetParam());
  for (int round = 0; round < 200; ++round) {
    auto times = std::make_unique<std::vector<std::atomic<int>>>(50);
    std::optional<ThreadPool::Job> first(std::in_place, pool, times->size(),
                                         [&](std::size_t i) { ++times->at(i); });
    const ThreadPool::Job second(pool, times->size(), [&](std::size_t i) { ++times->at(i); });
    if (round % 2 == 0) first->finish();
    first.reset();
  }
}

/// Lists overlap as buckets that are read ahead do: some fail, some are dropped, all others are done once.
TEST_P(TeamTest, ManyListsAtOnce) {
  struct List {
    std::vector<std::atomic<int>> times;
    std::size_t failing;
    std::optional<ThreadPool::Job> job;

    List(std::size_t count, std::size_t bad) : times(count), failing(bad) {}
  };
  ThreadPool pool(GetParam());
  std::mt19937 random(7);
  std::deque<std::unique_ptr<List>> lists;
  for (int number = 0; number < 3000; ++number) {
    const std::size_t count = random() % 20;
    const bool fails = random() % 8 == 0;
    lists.push_back(std::make_unique<List>(count, fails ? random() % 20 : count));
    List& list = *lists.back();
    list.job.emplace(pool, count, [&list](std::size_t i) {
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
  ThreadPool pool(3);
  // Each waits until all three are there.
  std::atomic<int> there = 0;
  std::atomic<int> alone = 0;
  pool.run(3, [&](std::size_t) {
    ++there;
    if (!wait_for([&] { return there >= 3; })) ++alone;
  });
  EXPECT_EQ(alone, 0);
}

TEST(TeamTest, AThreadWithoutATaskGoesOnWithTheNextList) {
  ThreadPool pool(2);
  // The first list's only task ends when the second list has been worked through.
  std::atomic<int> done = 0;
  std::atomic<bool> in_time = false;
  ThreadPool::Job first(pool, 1, [&](std::size_t) { in_time = wait_for([&] { return done == 10; }); });
  ThreadPool::Job second(pool, 10, [&](std::size_t) { ++done; });
  first.finish();
  EXPECT_TRUE(in_time);
  second.finish();
}

}  // namespace

}  // namespace weightcast
