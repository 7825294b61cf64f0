#include <gtest/gtest.h>

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <sstream>
#include <tuple>
#include <vector>

#include "core/error.hpp"
#include "naive_model.hpp"
#include "plan/rank_plan.hpp"
#include "plan/steps.hpp"
#include "plan_cases.hpp"

namespace weightcast {

namespace {

using namespace plan_cases;

TEST(PlanAsAWhole, TrainersSendEquallyMuch) {
  naive::Model model = small_moe();
  model.hidden = 256;
  model.vocabulary = 8000;
  model.expert_inner = 512;
  const auto family = model.family();
  for (const std::int64_t trainers : {2, 3, 5, 8}) {
    const Plan plan = make_plan(*family, topology_of(trainers, "tp=4,ep=2,replicas=2"), capped(1 << 20));
    std::vector<std::int64_t> sent(static_cast<std::size_t>(trainers), 0);
    for_each_segment(plan, [&](const Bucket& bucket, const Segment& segment) {
      sent[bucket.root] += segment.box.area() * 2;
    });
    const std::int64_t total = std::accumulate(sent.begin(), sent.end(), std::int64_t{0});
    EXPECT_EQ(total, family->catalog().bytes());
    // A few rows a destination set, and sets too small to divide.
    const std::int64_t slack = 64 << 10;
    EXPECT_LE(*std::max_element(sent.begin(), sent.end()), total / trainers + slack) << trainers;
    EXPECT_GE(*std::min_element(sent.begin(), sent.end()), total / trainers - slack) << trainers;
  }
}

TEST(PlanAsAWhole, RootsTakeTurnsAndBeginWithDifferentSets) {
  naive::Model model = small_moe();
  model.expert_inner = 512;
  const auto family = model.family();
  const Plan plan = make_plan(*family, topology_of(4, "tp=4,ep=4"), capped(64 << 10));
  std::vector<std::size_t> count(4, 0);
  for (const Bucket& bucket : plan.buckets) ++count[bucket.root];
  const std::size_t turns = *std::min_element(count.begin(), count.end());
  ASSERT_GE(turns, 4u);
  for (std::size_t b = 0; b < 4 * turns; ++b) EXPECT_EQ(plan.buckets[b].root, b % 4) << b;
  std::set<std::uint32_t> first_sets;
  for (std::size_t b = 0; b < 4; ++b) first_sets.insert(plan.buckets[b].destinations);
  EXPECT_EQ(first_sets.size(), 4u);
}

/// The order of buckets cut into steps by hand: a bucket whose root or destinations the step already has
/// begins the next one.
std::int64_t steps_by_hand(const Plan& plan) {
  std::int64_t steps = 0;
  std::set<std::int64_t> senders;
  std::set<std::int64_t> receivers;
  for (const Bucket& bucket : plan.buckets) {
    std::vector<std::int64_t> ranks = plan.destination_ranks(bucket.destinations);
    if (ranks == std::vector<std::int64_t>{bucket.root}) continue;  // to itself alone
    const bool heard = std::any_of(ranks.begin(), ranks.end(), [&](auto r) { return receivers.contains(r); });
    if (steps == 0 || senders.contains(bucket.root) || heard) {
      ++steps;
      senders.clear();
      receivers.clear();
    }
    senders.insert(bucket.root);
    receivers.insert(ranks.begin(), ranks.end());
  }
  return steps;
}

TEST(PlanAsAWhole, StepsAreAsFewAsTheBusiestLinkNeeds) {
  naive::Model model = small_moe();
  model.expert_inner = 512;
  const auto family = model.family();
  const auto plan_of = [&](std::int64_t trainers, const char* engine, bool colocate) {
    return make_plan(*family, topology_of(trainers, engine, colocate), capped(64 << 10));
  };
  for (const auto& [trainers, engine, colocate] : {std::tuple(2, "tp=2", false),
                                                   {4, "tp=4", false},
                                                   {4, "tp=4,ep=4", false},
                                                   {1, "tp=1,replicas=3", false},
                                                   {3, "tp=1", false},
                                                   {4, "tp=2,replicas=2", false},
                                                   {4, "tp=4,ep=4", true},
                                                   {2, "tp=2,ep=2", true}}) {
    SCOPED_TRACE(fmt::format("{} trainers, {}, colocated {}", trainers, engine, colocate));
    const Plan plan = plan_of(trainers, engine, colocate);
    const StepCounts counts = count_steps(plan);
    EXPECT_EQ(counts.steps, steps_by_hand(plan));
    EXPECT_GE(counts.steps, counts.least);
    EXPECT_LE(counts.steps, counts.least + 1);
    EXPECT_LE(counts.with_idle_link, counts.steps);
  }
  // One sender, everybody hears it: nothing idles.
  EXPECT_EQ(count_steps(plan_of(1, "tp=1,replicas=3", false)).with_idle_link, 0);
  // Three senders to one receiver: two of them wait until the last bucket but one.
  const StepCounts one_receiver = count_steps(plan_of(3, "tp=1", false));
  EXPECT_EQ(one_receiver.with_idle_link, one_receiver.steps - 1);
  // What nobody sends takes no step.
  EXPECT_EQ(count_steps(plan_of(1, "tp=1", true)).steps, 0);
}

TEST(PlanAsAWhole, TrafficIsWhatTheSharesExchange) {
  const auto family = small_moe().family();
  for (const auto& [engine, colocate] :
       {std::pair{"tp=2,ep=2,replicas=2", false}, std::pair{"tp=2,ep=2,replicas=2", true},
        std::pair{"tp=4,ep=2", true}, std::pair{"tp=2,pp=2", true}}) {
    SCOPED_TRACE(engine);
    const Plan plan = make_plan(*family, topology_of(2, engine, colocate), capped(64 << 10));
    std::vector<Traffic> expected(static_cast<std::size_t>(plan.topology.ranks()));
    std::vector<bool> travels(plan.buckets.size(), false);
    for (std::size_t rank = 0; rank < expected.size(); ++rank) {
      const RankPlan rank_plan = make_rank_plan(plan, *family, static_cast<std::int64_t>(rank));
      expected[rank].buckets = static_cast<std::int64_t>(rank_plan.buckets.size());
      for (const RankBucket& bucket : rank_plan.buckets) {
        if (bucket.root) continue;
        travels[bucket.bucket] = true;
        expected[rank].received += plan.buckets[bucket.bucket].bytes;
      }
    }
    std::int64_t wire = 0;
    for (std::size_t b = 0; b < travels.size(); ++b) {
      const std::int64_t bytes = travels[b] ? plan.buckets[b].bytes : 0;
      expected[plan.buckets[b].root].sent += bytes;
      wire += bytes;
    }
    EXPECT_EQ(plan.wire_bytes(), wire);
    const std::vector<Traffic> traffic = plan.traffic();
    ASSERT_EQ(traffic.size(), expected.size());
    for (std::size_t rank = 0; rank < traffic.size(); ++rank) {
      EXPECT_EQ(traffic[rank].sent, expected[rank].sent) << rank;
      EXPECT_EQ(traffic[rank].received, expected[rank].received) << rank;
      EXPECT_EQ(traffic[rank].buckets, expected[rank].buckets) << rank;
    }
  }
}

TEST(PlanAsAWhole, WhatARankHandsToItselfIsNoTraffic) {
  const auto family = small_moe().family();
  const Plan alone = make_plan(*family, topology_of(0, "tp=1", true), capped(64 << 10));
  EXPECT_EQ(alone.wire_bytes(), 0);
  EXPECT_EQ(alone.traffic().front().sent, 0);
  EXPECT_EQ(alone.traffic().front().received, 0);
  EXPECT_EQ(alone.traffic().front().buckets, static_cast<std::int64_t>(alone.buckets.size()));

  // Two whole copies: each rank sends the other just the half that it owns.
  const Plan pair = make_plan(*family, topology_of(0, "tp=1,replicas=2", true), capped(64 << 10));
  const std::vector<Traffic> traffic = pair.traffic();
  EXPECT_EQ(traffic[0].sent, traffic[1].received);
  EXPECT_EQ(traffic[1].sent, traffic[0].received);
  EXPECT_EQ(traffic[0].sent + traffic[1].sent, pair.wire_bytes());
  const std::int64_t model = family->catalog().bytes();
  EXPECT_NEAR(static_cast<double>(traffic[0].sent), static_cast<double>(model) / 2,
              0.05 * static_cast<double>(model));
  EXPECT_GE(pair.wire_bytes(), model);
}

TEST(PlanAsAWhole, HashIsThatOfTheInputs) {
  const naive::Model model = small_moe();
  const Topology topology = topology_of(2, "tp=4,ep=2,replicas=2");
  const Limits limits = capped(64 << 10);
  const auto hash = [](const naive::Model& m, const Topology& t, const Limits& l) {
    return make_plan(*m.family(), t, l).hash;
  };
  const std::uint64_t original = hash(model, topology, limits);
  EXPECT_EQ(hash(model, topology, limits), original);
  std::set<std::uint64_t> seen{original};
  const auto expect_new = [&](const char* what, const naive::Model& m, const Topology& t, const Limits& l) {
    EXPECT_TRUE(seen.insert(hash(m, t, l)).second) << what;
  };
  const auto with_model = [&](const char* what, auto change) {
    naive::Model changed = model;
    change(changed);
    expect_new(what, changed, topology, limits);
  };
  with_model("dtype of the same size", [](auto& m) { m.dtype = DType::kF16; });
  with_model("hidden", [](auto& m) { m.hidden = 100; });
  with_model("layers", [](auto& m) { m.layers = 3; });
  with_model("tied", [](auto& m) { m.tied = true; });
  with_model("bias", [](auto& m) { m.bias = true; });
  with_model("dense layer", [](auto& m) { m.mlp_only_layers = {1}; });
  const auto with_topology = [&](const char* what, auto change) {
    Topology changed = topology;
    change(changed);
    expect_new(what, model, changed, limits);
  };
  with_topology("trainers", [](auto& t) { t.trainers = 3; });
  with_topology("tp", [](auto& t) { t.engine.tp = 2; });
  with_topology("ep", [](auto& t) { t.engine.ep = 4; });
  with_topology("pp", [](auto& t) { t.engine.pp = 2; });
  with_topology("replicas", [](auto& t) { t.engine.replicas = 3; });
  // Nothing travels otherwise, but the receiver must put it elsewhere.
  with_topology("kernel layout", [](auto& t) { t.engine.moe_layout = "cutlass"; });
  with_topology("colocate", [](auto& t) {
    t.trainers = 8;
    t.colocate = true;
  });
  const auto with_limits = [&](const char* what, auto change) {
    Limits changed = limits;
    change(changed);
    expect_new(what, model, topology, changed);
  };
  with_limits("bucket size", [](auto& l) { l.bucket_bytes = 65 << 10; });
  with_limits("buffers", [](auto& l) { l.buffers = 2; });
  with_limits("fan-out", [](auto& l) { l.fan_out = FanOut::kAll; });
}

TEST(PlanAsAWhole, BucketsBeyondCountingAreRefusedBeforeTheyAreMade) {
  naive::Model model;
  model.hidden = 1 << 20;
  model.layers = 1;
  model.head_dim = 2;
  model.vocabulary = 1 << 22;
  model.inner = 4;
  const auto family = model.family();
  const Topology topology = topology_of(1, "tp=1");
  try {
    make_plan(*family, topology, capped(64 << 10));
    FAIL();
  } catch (const UsageError& error) {
    // Embedding and head of 8 TiB each.
    EXPECT_STREQ(
        error.what(),
        "--bucket-size 64.0 KiB: too small for an update of 1.76e+13 bytes, which would take more than "
        "16777216 buckets; 2.00 MiB is enough");
  }
  EXPECT_NO_THROW(make_plan(*family, topology, capped(256 << 20)));
}

TEST(PlanAsAWhole, LimitsOutOfRangeAreUsageErrors) {
  const auto family = small_moe().family();
  EXPECT_THROW(make_plan(*family, topology_of(1, "tp=1"), capped((64 << 10) - 1)), UsageError);
  Limits limits;
  limits.buffers = 0;
  EXPECT_THROW(make_plan(*family, topology_of(1, "tp=1"), limits), UsageError);
  EXPECT_THROW(make_plan(*family, topology_of(0, "tp=1"), Limits{}), UsageError);
  EXPECT_THROW(make_plan(*family, topology_of(1, "tp=16"), Limits{}), UsageError);
}

TEST(PlanAsAWhole, JsonSaysTheSame) {
  const auto family = small_moe().family();
  const Plan plan = make_plan(*family, topology_of(2, "tp=2,ep=2"), capped(64 << 10));
  const nlohmann::json json = plan_json(plan, family->catalog(), true);
  EXPECT_EQ(json["hash"], fmt::format("{:016x}", plan.hash));
  EXPECT_EQ(json["wire_bytes"], plan.wire_bytes());
  EXPECT_EQ(json["routes"], plan.routes());
  EXPECT_EQ(json["model"]["bytes"], family->catalog().bytes());
  EXPECT_EQ(json["steps"]["count"], count_steps(plan).steps);
  ASSERT_EQ(json["buckets"].size(), plan.buckets.size());
  std::int64_t elements = 0;
  for (const auto& bucket : json["buckets"]) {
    for (const auto& segment : bucket["segments"]) {
      elements += (segment["rows"][1].get<std::int64_t>() - segment["rows"][0].get<std::int64_t>()) *
                  (segment["columns"][1].get<std::int64_t>() - segment["columns"][0].get<std::int64_t>());
    }
  }
  EXPECT_EQ(elements * 2, family->catalog().bytes());
}

TEST(PlanAsAWhole, Qwen235BOn256TrainersAnd512InferenceRanks) {
  std::ifstream file(fmt::format("{}/models/Qwen3-235B-A22B/config.json", WEIGHTCAST_TEST_DATA));
  std::stringstream text;
  text << file.rdbuf();
  const auto family = make_family(ModelConfig(text.str(), "Qwen3-235B-A22B"));
  const Topology topology = topology_of(256, "tp=32,ep=32,replicas=16");
  const Plan plan = make_plan(*family, topology, Limits{});
  expect_sound_buckets(*family, plan);

  const std::int64_t model_bytes = family->catalog().bytes();
  std::vector<std::int64_t> sent(256, 0);
  for_each_segment(plan,
                   [&](const Bucket& bucket, const Segment& s) { sent[bucket.root] += s.box.area() * 2; });
  EXPECT_EQ(std::accumulate(sent.begin(), sent.end(), std::int64_t{0}), model_bytes);
  EXPECT_LE(*std::max_element(sent.begin(), sent.end()), model_bytes / 256 * 21 / 20);
  EXPECT_GE(*std::min_element(sent.begin(), sent.end()), model_bytes / 256 * 19 / 20);

  // Rank 5 of the last replica: 128/32 experts a layer, 2 query heads, one kv head, 1/32 of the vocabulary.
  const RankPlan rank_plan = make_rank_plan(plan, *family, 256 + 15 * 32 + 5);
  const std::int64_t hidden = 4096;
  const std::int64_t layer = 2 * hidden + hidden * 4 * 128 + hidden * 256 + std::int64_t{2} * 128 +
                             128 * hidden + hidden * 4 * 3 * 1536;
  const std::int64_t expected = 2 * (94 * layer + hidden * 2 * 151936 / 32 + hidden);
  std::int64_t bytes = 0;
  for (const Parameter& parameter : rank_plan.parameters) bytes += parameter.bytes();
  EXPECT_EQ(bytes, expected);
  EXPECT_EQ(rank_plan.moves.size(), rank_plan.checks.size());
  EXPECT_TRUE(rank_plan.padding.empty());
  std::int64_t moved = 0;
  for (const Move& move : rank_plan.moves) moved += move.bytes();
  EXPECT_EQ(moved, expected);

  // A trainer receives nothing and packs only its own.
  const RankPlan trainer = make_rank_plan(plan, *family, 17);
  EXPECT_TRUE(trainer.parameters.empty());
  EXPECT_TRUE(trainer.moves.empty());
  EXPECT_FALSE(trainer.buckets.empty());
  for (const RankBucket& bucket : trainer.buckets) EXPECT_EQ(plan.buckets[bucket.bucket].root, 17u);
}

}  // namespace

}  // namespace weightcast
