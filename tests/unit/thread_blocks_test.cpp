// How many thread blocks kernels have beside transfers. Needs no GPU.

#include <gtest/gtest.h>

#include "plan_cases.hpp"
#include "session/thread_blocks.hpp"

namespace weightcast {

namespace {

constexpr int kMultiprocessors = 132;
constexpr std::int64_t kGB = 1'000'000'000;

int beside(std::int64_t wire_gb, std::int64_t kernel_gb) {
  return ThreadBlocks({wire_gb * kGB, kernel_gb * kGB}, kMultiprocessors, 0).beside_transfers;
}

TEST(ThreadBlocks, KeepAheadOfWhatTravels) {
  // Everything travels: read, written and digested once on either side.
  EXPECT_EQ(beside(61, 183), kMultiprocessors / 4);
  EXPECT_EQ(beside(15, 122), kMultiprocessors / 2);
  // Nothing, or little beside what stays.
  EXPECT_EQ(beside(0, 183), 4 * kMultiprocessors);
  EXPECT_EQ(beside(1, 90), 4 * kMultiprocessors);
  EXPECT_EQ(ThreadBlocks({15 * kGB, 122 * kGB}, kMultiprocessors, 20).beside_transfers, 20);
}

TEST(ThreadBlocks, WorkIsWhatARankMoves) {
  const auto family = plan_cases::small_moe().family();
  const Limits limits = plan_cases::capped(64 << 10);
  const Plan plan = make_plan(*family, plan_cases::topology_of(1, "tp=1", false), limits);
  const GpuWork root = gpu_work(plan, make_rank_plan(plan, *family, 0));
  const GpuWork destination = gpu_work(plan, make_rank_plan(plan, *family, 1));
  EXPECT_EQ(root.wire_bytes, plan.wire_bytes());
  EXPECT_EQ(destination.wire_bytes, plan.wire_bytes());
  EXPECT_EQ(destination.kernel_bytes, 3 * plan.wire_bytes());
  EXPECT_GT(root.kernel_bytes, plan.wire_bytes());
  EXPECT_LE(root.kernel_bytes, 2 * plan.wire_bytes());
  // What a rank hands to itself does not travel.
  const Plan own = make_plan(*family, plan_cases::topology_of(1, "tp=1", true), limits);
  const GpuWork alone = gpu_work(own, make_rank_plan(own, *family, 0));
  EXPECT_EQ(alone.wire_bytes, 0);
  EXPECT_GT(alone.kernel_bytes, 0);
}

}  // namespace

}  // namespace weightcast
