#include <gtest/gtest.h>

#include <fmt/format.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "core/units.hpp"
#include "emulated_update.hpp"
#include "naive_model.hpp"
#include "plan/plan.hpp"

namespace weightcast {

namespace {

struct Case {
  naive::Model model;
  Topology topology;
  Limits limits;

  std::string to_string() const {
    const EngineLayout& e = topology.engine;
    return fmt::format(
        "{} trainers {} colocate {} tp {} ep {} pp {} replicas {} {} bucket {} buffers {} fan-out {}",
        model.config_text(), topology.trainers, topology.colocate, e.tp, e.ep, e.pp, e.replicas, e.moe_layout,
        limits.bucket_bytes, limits.buffers, limits.fan_out == FanOut::kAll ? "all" : "needed");
  }
};

/// Random models and layouts that fit each other.
class Cases {
 public:
  explicit Cases(std::uint64_t seed) : random_(seed) {}

  Case next() {
    Case c;
    EngineLayout& engine = c.topology.engine;
    engine.tp = pick({1, 2, 3, 4, 6, 8});
    engine.ep = divisor(engine.tp);
    engine.pp = pick({1, 1, 1, 2, 3});
    engine.replicas = pick({1, 1, 2, 3});
    c.topology.colocate = chance(3);
    c.topology.trainers = c.topology.colocate ? engine.ranks() : between(1, 5);
    c.model = model(engine);
    // The kernels of cutlass load 16 bytes at a time.
    const std::int64_t unit = 16 / dtype_bytes(c.model.dtype);
    const bool aligned = c.model.hidden % unit == 0 && c.model.expert_inner / engine.expert_tp() % unit == 0;
    std::vector<std::string> moe_layouts{"triton", "triton-kernels"};
    if (!c.model.moe || aligned) moe_layouts.emplace_back("cutlass");
    if (!c.model.moe || (c.model.hidden % 64 == 0 && c.model.dtype == DType::kBF16)) {
      moe_layouts.emplace_back("trtllm");
    }
    engine.moe_layout =
        moe_layouts[static_cast<std::size_t>(between(0, static_cast<std::int64_t>(moe_layouts.size()) - 1))];
    c.limits.bucket_bytes =
        Limits::kLeastBucketBytes + (chance(2) ? 0 : between(1, chance(3) ? 1'500'000 : 200'000));
    c.limits.buffers = between(1, 4);
    c.limits.fan_out = chance(4) ? FanOut::kAll : FanOut::kNeeded;
    return c;
  }

 private:
  naive::Model model(const EngineLayout& engine) {
    naive::Model model;
    // Now and then rows that are larger than a bucket, or tensors that travel in messages of their own.
    const bool wide = chance(8);
    const bool large = !wide && chance(8);
    model.moe = !wide && chance(2);
    model.hidden = wide ? between(30'000, 45'000) : large ? between(500, 1'200) : between(3, 120);
    model.layers = engine.pp * (wide ? 1 : between(1, 2));
    model.heads = engine.tp * between(1, 2) * (chance(3) ? 2 : 1);
    model.kv_heads = kv_heads(engine.tp, model.heads);
    model.head_dim = between(1, wide ? 2 : 9);
    // The padded vocabulary is a multiple of 64 and of tp.
    const std::int64_t units = engine.tp % 3 == 0 ? 3 * between(1, 2) : between(1, 6);
    model.vocabulary = wide ? 64 * units - 63 : 64 * units - between(0, 63);
    model.inner = engine.tp * between(1, wide ? 1 : 9);
    model.experts = engine.ep * between(1, 4);
    model.expert_inner = engine.expert_tp() * between(1, 12);
    if (model.moe && chance(2)) {
      // Aligned as cutlass wants it, for elements of any size.
      model.hidden = round_up(model.hidden, 8);
      model.expert_inner = engine.expert_tp() * 8 * between(1, 3);
    }
    model.sparse_step = between(1, 2);
    for (std::int64_t layer = 0; layer < model.layers; ++layer) {
      if (chance(4)) model.mlp_only_layers.push_back(layer);
    }
    model.tied = chance(3);
    model.bias = chance(3);
    if (model.moe && chance(3)) {
      // As trtllm wants it; now and then with more than one block of padding, or none.
      model.hidden = 64 * between(1, 3);
      model.expert_inner = engine.expert_tp() * (chance(2) ? 128 : between(1, 200));
      model.experts = engine.ep * between(1, 2);
      model.dtype = DType::kBF16;
      return model;
    }
    model.dtype = chance(3) ? DType::kF32 : chance(2) ? DType::kF16 : DType::kBF16;
    return model;
  }

  /// Divides tp or is a multiple of it, and divides the heads.
  std::int64_t kv_heads(std::int64_t tp, std::int64_t heads) {
    std::vector<std::int64_t> choices;
    for (std::int64_t kv = 1; kv <= heads; ++kv) {
      if (heads % kv == 0 && (tp % kv == 0 || kv % tp == 0)) choices.push_back(kv);
    }
    return choices[static_cast<std::size_t>(between(0, static_cast<std::int64_t>(choices.size()) - 1))];
  }

  std::int64_t between(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random_);
  }
  bool chance(std::int64_t one_in) { return between(1, one_in) == 1; }
  std::int64_t pick(const std::vector<std::int64_t>& choices) {
    return choices[static_cast<std::size_t>(between(0, static_cast<std::int64_t>(choices.size()) - 1))];
  }
  std::int64_t divisor(std::int64_t n) {
    std::vector<std::int64_t> divisors;
    for (std::int64_t d = 1; d <= n; ++d) {
      if (n % d == 0) divisors.push_back(d);
    }
    return pick(divisors);
  }

  std::mt19937_64 random_;
};

/// Every tenth of the cases is a test of its own, so that they run side by side.
class AnyLayout : public ::testing::TestWithParam<int> {};

TEST_P(AnyLayout, EveryByteIsWhereTheEngineLooks) {
  constexpr int kCases = 15;
  Cases cases(static_cast<std::uint64_t>(GetParam()));
  for (int i = 0; i < kCases && !HasFailure(); ++i) {
    const Case c = cases.next();
    SCOPED_TRACE(c.to_string());
    const auto family = c.model.family();
    const std::vector<naive::Entry> tensors = naive::tensors(c.model);
    ASSERT_EQ(family->catalog().size(), tensors.size());
    const naive::Weights weights = naive::random_weights(c.model, static_cast<std::uint64_t>(i));
    const Plan plan = make_plan(*family, c.topology, c.limits);
    const std::vector<EmulatedRank> ranks = emulate_update(plan, *family, weights);
    for (std::size_t r = 0; r < ranks.size(); ++r) {
      SCOPED_TRACE(fmt::format("rank {}", r));
      const auto rank = c.topology.inference_rank(static_cast<std::int64_t>(r));
      if (!rank) {
        EXPECT_TRUE(ranks[r].parameters.empty());
        continue;
      }
      const EngineLayout& engine = c.topology.engine;
      // A rank's place, said without the product's arithmetic.
      const EngineRank place{*rank / (engine.pp * engine.tp), *rank / engine.tp % engine.pp,
                             *rank % engine.tp};
      expect_parameters(ranks[r], naive::parameters(c.model, engine, place, weights));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Random, AnyLayout, ::testing::Range(0, 10));

}  // namespace

}  // namespace weightcast
