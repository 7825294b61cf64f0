// How many thread blocks kernels have beside transfers. Needs no GPU.

#include <gtest/gtest.h>

#include "plan_cases.hpp"
#include "session/thread_blocks.hpp"

namespace weightcast {

namespace {

constexpr int kMultiprocessors = 132;

int beside(GpuWork work) {
  constexpr std::int64_t kGB = 1'000'000'000;
  for (std::int64_t* bytes : {&work.wire, &work.pack, &work.unpack, &work.local, &work.digest}) *bytes *= kGB;
  return ThreadBlocks(work, kMultiprocessors, 0).beside_transfers;
}

TEST(ThreadBlocks, KeepAheadOfWhatTravels) {
  // Everything travels from one rank to another.
  EXPECT_EQ(beside({.wire = 61, .pack = 122}), kMultiprocessors / 4);
  EXPECT_EQ(beside({.wire = 61, .unpack = 122, .digest = 61}), kMultiprocessors / 4);
  // Colocated, half of it: four kernels run at once and leave NCCL its multiprocessors.
  EXPECT_EQ(beside({.wire = 15, .pack = 30, .unpack = 30, .local = 30, .digest = 30}), 24);
  // As codes: more is read than travels, and what a layout places takes longer.
  const int placed = beside({.wire = 5, .unpack = 22, .digest = 5});
  EXPECT_GT(placed, kMultiprocessors / 4);
  EXPECT_LT(placed, kMultiprocessors / 2);
  EXPECT_EQ(beside({.wire = 5, .unpack = 30, .digest = 5}), kMultiprocessors / 2);
}

TEST(ThreadBlocks, HaveTheDeviceWhereLittleTravels) {
  EXPECT_EQ(beside({.local = 61, .digest = 30}), 4 * kMultiprocessors);
  EXPECT_EQ(beside({.wire = 1, .pack = 2, .unpack = 2, .local = 58, .digest = 30}), 4 * kMultiprocessors);
}

TEST(ThreadBlocks, AreThoseThatWereAskedFor) {
  EXPECT_EQ(ThreadBlocks({.wire = 61, .pack = 122}, kMultiprocessors, 20).beside_transfers, 20);
  EXPECT_EQ(ThreadBlocks({.wire = 61, .pack = 122}, kMultiprocessors, 20).alone, 4 * kMultiprocessors);
}

TEST(ThreadBlocks, OfDirectBucketsFillTheLinkTogether) {
  const ThreadBlocks blocks({.wire = 61, .pack = 122}, kMultiprocessors, 0);
  EXPECT_EQ(blocks.of_direct(2, true), kMultiprocessors / 2);
  EXPECT_EQ(blocks.of_direct(2, false), kMultiprocessors);
  EXPECT_EQ(blocks.of_direct(6, true), kMultiprocessors / 6);
  EXPECT_EQ(blocks.of_direct(132, true), 16);
  EXPECT_EQ(ThreadBlocks({.wire = 61, .pack = 122}, kMultiprocessors, 20).of_direct(2, false), 20);
}

TEST(ThreadBlocks, WorkIsWhatARankMoves) {
  const auto family = plan_cases::small_moe().family();
  const Limits limits = plan_cases::capped(64 << 10);
  const Plan plan = make_plan(*family, plan_cases::topology_of(1, "tp=1", false), limits);
  const GpuWork root = gpu_work(plan, make_rank_plan(plan, *family, 0));
  const GpuWork destination = gpu_work(plan, make_rank_plan(plan, *family, 1));
  std::int64_t values = 0;
  for (const Segment& segment : plan.segments) values += plan.segment_bytes(segment);
  EXPECT_EQ(root.wire, plan.wire_bytes());
  EXPECT_EQ(root.pack, values + plan.wire_bytes());
  EXPECT_EQ(root.unpack + root.local + root.digest, 0);
  EXPECT_EQ(destination.wire, plan.wire_bytes());
  EXPECT_EQ(destination.unpack, 2 * values);
  EXPECT_EQ(destination.digest, plan.wire_bytes());
  EXPECT_EQ(destination.pack + destination.local, 0);
  // What a rank hands to itself does not travel.
  const Plan own = make_plan(*family, plan_cases::topology_of(1, "tp=1", true), limits);
  const GpuWork alone = gpu_work(own, make_rank_plan(own, *family, 0));
  EXPECT_EQ(alone.wire + alone.pack + alone.unpack, 0);
  EXPECT_EQ(alone.local, 2 * values);
}

}  // namespace

}  // namespace weightcast
