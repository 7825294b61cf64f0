// What a rebalance plans: from where experts come, how much moves, and that rounds have no byte in common.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "model_configs.hpp"
#include "plan/rank_plan.hpp"
#include "plan/rebalance.hpp"

namespace weightcast {

namespace {

using Slots = std::vector<std::int64_t>;

/// w13 and w2 of one expert of block-qwen3-moe, whose layer 1 has none.
constexpr std::int64_t kExpertBytes = (2 * 256 * 256 + 256 * 256) * 2;

ExpertMap map_of(const Slots& slots, std::int64_t ep, std::int64_t epoch) {
  ExpertMap map{fmt::format("map-{}", epoch), 4, static_cast<std::int64_t>(slots.size()), ep, {}};
  map.placement = {epoch, {slots, {}}};
  return map;
}

Rebalance plan_of(const std::string& layout, const Slots& from, const Slots& to,
                  const std::vector<std::int64_t>& hosts, const Limits& limits = {}) {
  const EngineLayout engine = parse_engine_layout(layout, "triton");
  return plan_rebalance(*exported_family("block-qwen3-moe"), engine, map_of(from, engine.ep, 1),
                        map_of(to, engine.ep, 2), hosts, limits);
}

TEST(RebalancePlan, TakesExpertsFromTheNearestSlots) {
  const Rebalance plan =
      plan_of("tp=4,ep=4", {0, 1, 2, 3, 0, 1, 2, 3}, {1, 0, 2, 3, 0, 2, 3, 1}, {0, 0, 1, 1});
  EXPECT_EQ(plan.figures.local, 3);
  EXPECT_EQ(plan.figures.same_host, 2);
  EXPECT_EQ(plan.figures.other_host, 0);
  EXPECT_EQ(plan.figures.local_bytes, 3 * kExpertBytes);
  EXPECT_EQ(plan.figures.moved_bytes(), 2 * kExpertBytes);
  EXPECT_EQ(plan.figures.least_bytes, 2 * kExpertBytes);
  EXPECT_EQ(plan.plan.wire_bytes(), 2 * kExpertBytes);
  const std::vector<Traffic> traffic = plan.plan.traffic();
  EXPECT_EQ(traffic[1].sent, 0);
  EXPECT_EQ(traffic[3].sent, kExpertBytes);
  EXPECT_EQ(traffic[2].received, kExpertBytes);
}

TEST(RebalancePlan, AnExpertComesOnceForSeveralSlots) {
  const Rebalance plan = plan_of("tp=2,ep=2", {0, 1, 2, 3, 3, 3}, {0, 1, 2, 2, 2, 3}, {0, 1});
  EXPECT_EQ(plan.figures.changed(), 2);
  EXPECT_EQ(plan.figures.other_host, 2);
  EXPECT_EQ(plan.figures.other_host_bytes, kExpertBytes);
  EXPECT_EQ(plan.figures.least_bytes, kExpertBytes);
}

TEST(RebalancePlan, ThoseWhoHaveAnExpertSendAsMuch) {
  const Rebalance plan = plan_of("tp=2,ep=2,replicas=3", {0, 1, 2, 3}, {2, 1, 0, 3}, {0, 0, 0, 0, 0, 0});
  EXPECT_EQ(plan.figures.same_host, 6);
  for (const Traffic& traffic : plan.plan.traffic()) EXPECT_EQ(traffic.sent, kExpertBytes);
}

TEST(RebalancePlan, MovesNothingWhereNothingChanges) {
  const Rebalance plan = plan_of("tp=2,ep=2", {0, 1, 2, 3}, {0, 1, 2, 3}, {0, 0});
  EXPECT_TRUE(plan.plan.buckets.empty());
  EXPECT_EQ(plan.figures.changed(), 0);
}

struct Bytes {
  std::uint32_t parameter = 0;
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::size_t round = 0;

  bool touches(const Bytes& other) const {
    return parameter == other.parameter && begin < other.end && other.begin < end;
  }
};

TEST(RebalancePlan, RoundsHaveNoByteInCommonAndFitIntoStaging) {
  std::mt19937 random(5);
  for (int turn = 0; turn < 20; ++turn) {
    Slots from{0, 1, 2, 3, 0, 1, 2, 3};
    Slots to = from;
    std::shuffle(from.begin(), from.end(), random);
    std::shuffle(to.begin(), to.end(), random);
    Limits limits;
    limits.bucket_bytes = turn % 2 == 0 ? 16 << 10 : 256 << 10;
    limits.buffers = 16;
    const Rebalance rebalance = plan_of("tp=4,ep=4", from, to, {0, 1, 0, 1}, limits);
    const Plan& plan = rebalance.plan;
    EXPECT_LE(plan.staging_bytes_per_rank(), limits.buffers * limits.bucket_bytes);
    for (std::int64_t rank = 0; rank < 4; ++rank) {
      const RankPlan rank_plan = make_rank_plan(plan, *rebalance.family, rank);
      std::vector<Bytes> reads;
      std::vector<Bytes> writes;
      std::map<std::size_t, std::int64_t> in_round;
      for (const RankBucket& mine : rank_plan.buckets) {
        const Bucket& bucket = plan.buckets[mine.bucket];
        const auto round = static_cast<std::size_t>(
            std::upper_bound(rebalance.rounds.begin(), rebalance.rounds.end(), mine.bucket) -
            rebalance.rounds.begin());
        EXPECT_LE(2 * ++in_round[round], plan.limits.buffers);
        for (std::uint32_t m = 0; m < mine.moves; ++m) {
          const Move& move = rank_plan.moves[mine.first_move + m];
          writes.push_back({move.buffer, move.offset, move.offset + move.bytes(), round});
        }
        if (!mine.root) continue;
        for (std::uint32_t s = 0; s < bucket.segments; ++s) {
          const Segment& segment = plan.segments[bucket.first_segment + s];
          const HeldBox& held = rebalance.held[static_cast<std::size_t>(rank)].of(segment.tensor).front();
          const std::int64_t begin = held.at(segment.box.row, segment.box.col, 2);
          reads.push_back({held.buffer, begin, begin + plan.segment_bytes(segment), round});
        }
      }
      for (const Bytes& read : reads) {
        for (const Bytes& write : writes) EXPECT_FALSE(read.touches(write) && read.round != write.round);
      }
    }
  }
}

std::string refusal(const std::string& layout, const ExpertMap& from, const ExpertMap& to,
                    const Limits& limits = {}) {
  try {
    const EngineLayout engine = parse_engine_layout(layout, "triton");
    plan_rebalance(*exported_family("block-qwen3-moe"), engine, from, to,
                   std::vector<std::int64_t>(static_cast<std::size_t>(engine.ranks())), limits);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no error";
}

TEST(RebalancePlan, RefusesMapsThatDoNotFit) {
  const Slots four{0, 1, 2, 3};
  expect_has(refusal("tp=2,ep=2", map_of(four, 2, 2), map_of(four, 2, 2)), {"--to map-2", "epoch 2"});
  expect_has(refusal("tp=2,ep=2", map_of(four, 2, 3), map_of(four, 2, 2)), {"does not follow epoch 3"});
  expect_has(refusal("tp=2,ep=2", map_of(four, 2, 1), map_of({0, 1, 2, 3, 3, 3}, 2, 2)),
             {"6 slots", "4 slots", "between the slots that there are"});
  expect_has(refusal("tp=4,ep=4", map_of(four, 2, 1), map_of({1, 0, 2, 3}, 2, 2)), {"--from map-1", "ep=4"});
  Limits limits;
  limits.bucket_bytes = 256;
  limits.buffers = 1;
  expect_has(
      refusal("tp=2,ep=2", map_of(four, 2, 1), map_of({2, 3, 0, 1}, 2, 2), limits),
      {"--bucket-size 256 B --buffers 1", "too little staging", "buckets of 4.00 KiB are needed, and"});
  EngineLayout landed = parse_engine_layout("tp=2,ep=2", "triton");
  landed.landing = "0123";
  EXPECT_THROW(plan_rebalance(*exported_family("block-qwen3-moe"), landed, map_of(four, 2, 1),
                              map_of({1, 0, 2, 3}, 2, 2), {0, 0}, {}),
               UsageError);
}

TEST(RebalancePlan, RefusesAnEngineThatHasNoSlots) {
  EngineLayout whole = parse_engine_layout("tp=1", "triton");
  whole.engine = Engine::kHf;
  try {
    plan_rebalance(*exported_family("block-qwen3-moe"), whole, map_of({0, 1, 2, 3}, 1, 1),
                   map_of({1, 0, 2, 3}, 1, 2), {0}, {});
    ADD_FAILURE() << "not refused";
  } catch (const UsageError& error) {
    expect_has(error.what(), {"--to map-2", "no parameter", "depends on the map"});
  }
}

}  // namespace

}  // namespace weightcast
