// Experts that move between the slots of ranks: whatever the maps, the layout and the order of updates and
// rebalances, every parameter is afterwards what an update under the new map would have made of it.

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <memory>
#include <numeric>
#include <optional>
#include <ostream>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "control_world.hpp"
#include "model/config.hpp"
#include "plan/rebalance.hpp"
#include "session/parameter_memory.hpp"
#include "session/rebalancing.hpp"
#include "source/memory_source.hpp"

namespace weightcast {

namespace {

using mpi_test::under_control;

struct Case {
  const char* name;
  const char* model;
  std::int64_t layers;
  std::int64_t experts;
  std::int64_t slots;
  const char* layout;
  const char* moe_layout = "triton";
  const char* quantizer = "";
  Engine engine = Engine::kSglang;

  friend std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.name; }
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all{
      {"FourRanks", "models/tiny-qwen3-moe", 3, 16, 20, "tp=4,ep=4"},
      {"WithoutSpareSlots", "models/tiny-qwen3-moe", 3, 16, 16, "tp=2,ep=2", "cutlass"},
      {"Replicas", "models/tiny-qwen3-moe", 3, 16, 18, "tp=2,ep=2,replicas=3", "triton-kernels"},
      {"ExpertsCutInHalves", "tiny/deepseek-v3", 3, 8, 12, "tp=4,ep=2", "triton", "", Engine::kVllm},
      {"DataParallelAttention", "tiny/deepseek-v3", 3, 8, 12, "attn_tp=1,attn_dp=4,ep=4"},
      {"StackedExpertsWithBiases", "tiny/gpt-oss", 2, 6, 8, "tp=4,ep=2"},
      {"StackedExpertsAlone", "tiny/qwen3.5-moe", 4, 6, 8, "tp=2,ep=2,replicas=2"},
      {"CodesAndScalesOfBlocks", "models/block-qwen3-moe", 2, 4, 6, "tp=2,ep=2,replicas=2", "cutlass",
       "fp8-block"},
      {"CodesOfFourBitsAndScalars", "models/block-qwen3-moe", 2, 4, 6, "tp=2,ep=2,replicas=3", "trtllm",
       "nvfp4"},
      {"ShuffledRows", "models/block-qwen3-moe", 2, 4, 6, "tp=2,ep=2", "trtllm-shuffled", "fp8-block"},
      {"PackedScales", "models/block-qwen3-moe", 2, 4, 8, "tp=2,ep=2", "deepgemm", "fp8-block:ue8m0"},
      {"ScalesOfWholeTensors", "models/block-qwen3-moe", 2, 4, 8, "tp=2,ep=2", "triton", "fp8-tensor"},
      {"OneRankAlone", "models/tiny-qwen3-moe", 3, 16, 18, "tp=1"},
  };
  return all;
}

std::unique_ptr<Family> family_of(const Case& c) {
  const std::string path = std::string(WEIGHTCAST_TEST_DATA "/") + c.model + "/config.json";
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return make_family(ModelConfig(text.str(), path));
}

EngineLayout layout_of(const Case& c) {
  EngineLayout layout = parse_engine_layout(c.layout, c.moe_layout);
  layout.engine = c.engine;
  if (*c.quantizer != 0) layout.quantizer = parse_quantizer(c.quantizer);
  return layout;
}

/// The same on every rank.
class Random {
 public:
  explicit Random(std::uint32_t seed) : generator_(seed) {}
  std::int64_t below(std::int64_t end) {
    return static_cast<std::int64_t>(generator_() % static_cast<std::uint32_t>(end));
  }

  /// Any map: all experts have a slot, the spare ones anything, in any order.
  ExpertMap map(const Case& c, std::int64_t ep, std::int64_t epoch) {
    ExpertMap map{"map", c.experts, c.slots, ep, {}};
    map.placement.epoch = epoch;
    for (std::int64_t layer = 0; layer < c.layers; ++layer) {
      std::vector<std::int64_t> slots;
      for (std::int64_t slot = 0; slot < c.slots; ++slot)
        slots.push_back(slot < c.experts ? slot : below(c.experts));
      for (std::size_t i = slots.size(); i > 1; --i)
        std::swap(slots[i - 1], slots[static_cast<std::size_t>(below(static_cast<std::int64_t>(i)))]);
      map.placement.experts_of_slots.push_back(slots);
    }
    return map;
  }

 private:
  std::mt19937 generator_;
};

/// A rank's parameters, which outlive the sessions that write them.
class Kept {
 public:
  explicit Kept(const RankPlan& rank_plan) {
    std::int64_t bytes = 0;
    for (const Parameter& parameter : rank_plan.parameters) {
      parameters_.push_back({parameter.name, 0, bytes, parameter.bytes()});
      bytes += parameter.bytes() + 64;
    }
    memory_ = make_host_memory(std::max<std::int64_t>(bytes, 1), "a test");
  }
  std::shared_ptr<ParameterMemory> parameters() const {
    return given_parameter_memory({memory_}, parameters_);
  }
  const std::byte* data() const { return memory_->data(); }
  std::vector<std::byte> bytes() const { return {data(), data() + memory_->bytes()}; }

 private:
  std::vector<GivenParameter> parameters_;
  std::shared_ptr<Memory> memory_;
};

Topology colocated(EngineLayout layout, const ExpertMap& map) {
  Topology topology;
  layout.experts = map.placement;
  topology.engine = layout;
  topology.colocate = true;
  topology.trainers = layout.ranks();
  return topology;
}

/// The parameters of this rank in a memory of zeros, as an update to `version` under a map writes them.
Kept updated(Control& control, const Family& family, const Topology& topology, std::int64_t version) {
  const Plan plan = make_plan(family, topology, {});
  Kept kept(make_rank_plan(plan, family, control.rank()));
  Session session(control, family, topology, {}, {.parameters = kept.parameters()});
  session.memory().fill(std::byte{0});
  MemorySource source(session.plan(), family.catalog(), control.rank(), version);
  Progress progress(ProgressMode::kNever, false);
  session.update(&source, version, true, progress);
  return kept;
}

void update(Control& control, const Family& family, const Topology& topology, std::int64_t version,
            const Kept& kept) {
  Session session(control, family, topology, {}, {.parameters = kept.parameters()});
  MemorySource source(session.plan(), family.catalog(), control.rank(), version);
  Progress progress(ProgressMode::kNever, false);
  session.update(&source, version, true, progress);
}

class Rebalances : public ::testing::TestWithParam<Case> {};

TEST_P(Rebalances, AndUpdatesInAnyOrderLeaveWhatAnUpdateWouldHaveMade) {
  const Case& c = GetParam();
  const EngineLayout layout = layout_of(c);
  under_control(static_cast<int>(layout.ranks()), [&](Control& control) {
    const auto family = family_of(c);
    Random random(7);
    ExpertMap map = random.map(c, layout.ep, 0);
    std::int64_t version = 3;
    const Kept kept = updated(control, *family, colocated(layout, map), version);
    for (int step = 0; step < 6; ++step) {
      SCOPED_TRACE(step);
      if (step == 3) update(control, *family, colocated(layout, map), ++version, kept);
      const ExpertMap next = random.map(c, layout.ep, map.placement.epoch + 1);
      std::vector<std::int64_t> hosts;
      for (std::int64_t rank = 0; rank < layout.ranks(); ++rank) hosts.push_back(random.below(2));
      Limits limits;
      // Little, so that slabs are cut and rounds are many, or plenty.
      limits.bucket_bytes = step % 2 == 0 ? 32 << 10 : 256 << 20;
      limits.buffers = step % 2 == 0 ? 24 : 3;
      const Rebalance rebalance = plan_rebalance(*family, layout, map, next, hosts, limits);
      EXPECT_EQ(rebalance.figures.moved_bytes(), rebalance.figures.least_bytes);
      EXPECT_LE(rebalance.plan.staging_bytes_per_rank(), limits.buffers * limits.bucket_bytes);
      if (rebalance.plan.buckets.empty()) continue;
      Rebalancing rebalancing(control, rebalance, {.parameters = kept.parameters()});
      Progress progress(ProgressMode::kNever, false);
      rebalancing.run(version, true, progress);
      map = next;
      const Kept expected = updated(control, *family, colocated(layout, map), version);
      EXPECT_TRUE(kept.bytes() == expected.bytes());
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Layouts, Rebalances, ::testing::ValuesIn(cases()),
                         [](const auto& of) { return std::string(of.param.name); });

/// Passes all on to another source.
class PassedOn : public HostSource {
 public:
  explicit PassedOn(HostSource& source) : source_(source) {}
  void find_largest(std::int64_t /*trainer*/, std::span<float> /*largest*/,
                    const std::function<void()>& /*poll*/) override {}
  void finish_bucket(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) override {
    source_.finish_bucket(bucket, staging, digests);
  }
  std::byte* in_place(std::uint32_t segment) const override { return source_.in_place(segment); }

 private:
  HostSource& source_;
};

/// By itself after a while.
class SlowSource final : public PassedOn {
 public:
  using PassedOn::PassedOn;
  void finish_bucket(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) override {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    PassedOn::finish_bucket(bucket, staging, digests);
  }
};

TEST(Rebalance, ARankReadsWhatItSendsBeforeItWritesWhatItGets) {
  const Case& c = cases().front();
  const EngineLayout layout = layout_of(c);
  under_control(4, [&](Control& control) {
    const auto family = family_of(c);
    Random random(2);
    const ExpertMap from = random.map(c, 4, 0);
    const ExpertMap to = random.map(c, 4, 1);
    const Kept kept = updated(control, *family, colocated(layout, from), 3);
    const Rebalance rebalance = plan_rebalance(*family, layout, from, to, {0, 0, 0, 0}, {});
    Rebalancing rebalancing(control, rebalance, {.parameters = kept.parameters()});
    // The others have sent long before.
    SlowSource slow(*rebalancing.source().on_host());
    Progress progress(ProgressMode::kNever, false);
    rebalancing.session().update(control.rank() == 1 ? &slow : &rebalancing.source(), 3, true, progress);
    EXPECT_TRUE(kept.bytes() == updated(control, *family, colocated(layout, to), 3).bytes());
  });
}

/// Says other digests than those of what it sends.
class LyingSource final : public PassedOn {
 public:
  using PassedOn::PassedOn;
  void finish_bucket(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) override {
    PassedOn::finish_bucket(bucket, staging, digests);
    if (const auto sent = std::ranges::find_if(digests, [](auto digest) { return digest != 0; });
        sent != digests.end()) {
      ++*sent;
    }
  }
};

TEST(Rebalance, WhatArrivesWrongIsNoticed) {
  const Case& c = cases().front();
  const EngineLayout layout = layout_of(c);
  under_control(4, [&](Control& control) {
    const auto family = family_of(c);
    Random random(1);
    const ExpertMap from = random.map(c, 4, 0);
    const ExpertMap to = random.map(c, 4, 1);
    const Kept kept = updated(control, *family, colocated(layout, from), 3);
    const Rebalance rebalance = plan_rebalance(*family, layout, from, to, {0, 0, 0, 0}, {});
    Rebalancing rebalancing(control, rebalance, {.parameters = kept.parameters()});
    LyingSource source(*rebalancing.source().on_host());
    Progress progress(ProgressMode::kNever, false);
    ::testing::internal::CaptureStderr();
    try {
      rebalancing.session().update(&source, 3, true, progress);
      ADD_FAILURE() << "not noticed";
    } catch (const AgreedFailure& failure) {
      EXPECT_EQ(failure.code(), ExitCode::kVerificationFailed);
      EXPECT_NE(std::string(failure.what()).find("experts.w"), std::string::npos) << failure.what();
    }
    ::testing::internal::GetCapturedStderr();
  });
}

}  // namespace

}  // namespace weightcast
