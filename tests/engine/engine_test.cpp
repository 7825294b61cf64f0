// The engine against a trained model: three versions of one checkpoint and what another implementation
// computed from each of them.

#include "engine/engine.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "engine/agreement.hpp"
#include "engine/cut.hpp"
#include "engine/files.hpp"
#include "engine/model_config.hpp"
#include "engine/thread_group.hpp"

namespace weightcast::engine {
namespace {

constexpr std::array<const char*, 3> kVersions = {"step0", "step1", "step181"};

/// An exact transfer leaves only the order of sums, so these tests allow far less than kLogitTolerance.
constexpr double kSumOrder = 1e-5;

std::string directory(const std::string& version) {
  return std::string(WEIGHTCAST_TEST_DATA) + "/python-coder-qwen3-moe/" + version;
}

ModelConfig trained_config() {
  return parse_model_config(read_text(directory("step0") + "/config.json"));
}

FileSource checkpoint_of(const std::string& version) {
  return FileSource(directory(version) + "/model.safetensors");
}

Reference reference_of(const std::string& version) {
  return read_reference(directory(version) + "/reference.safetensors");
}

std::vector<Reference> references_but(const std::string& version) {
  std::vector<Reference> references;
  for (const std::string other : kVersions) {
    if (other != version) references.push_back(reference_of(other));
  }
  return references;
}

struct Case {
  std::string version;
  std::int64_t tp;
  std::int64_t ep;
  bool up_first;
};

std::string case_name(const testing::TestParamInfo<Case>& info) {
  const Case& c = info.param;
  return fmt::format("{}_tp{}_ep{}_{}", c.version, c.tp, c.ep, c.up_first ? "cutlass" : "triton");
}

class EngineLayouts : public testing::TestWithParam<Case> {};

TEST_P(EngineLayouts, MeetsItsOwnReference) {
  const Case& c = GetParam();
  const ModelConfig config = trained_config();
  const FileSource checkpoint = checkpoint_of(c.version);
  const ThreadedReplica replica(config, c.tp, c.ep, c.up_first, [&](const RankLayout& layout) {
    return MemorySource(cut_rank(config, layout, checkpoint));
  });
  const Reference own = reference_of(c.version);
  const std::vector<Reference> others = references_but(c.version);
  const Agreement agreement =
      replica.run([&](const Model& model) { return compare(model, own, others, own.appended()); });
  EXPECT_EQ(objections(agreement, own, others, kSumOrder), std::vector<std::string>{});
  EXPECT_EQ(agreement.generated, own.greedy);
}

INSTANTIATE_TEST_SUITE_P(Versions, EngineLayouts,
                         testing::Values(Case{"step0", 1, 1, false}, Case{"step1", 1, 1, false},
                                         Case{"step181", 1, 1, false}),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Layouts, EngineLayouts,
                         testing::Values(Case{"step0", 1, 1, true}, Case{"step1", 2, 1, false},
                                         Case{"step181", 2, 2, true}, Case{"step1", 4, 2, false},
                                         Case{"step181", 4, 4, false}, Case{"step0", 4, 1, true},
                                         Case{"step0", 8, 2, false}),
                         case_name);

/// Step 0 on one rank, to be damaged.
class EngineSensitivity : public testing::Test {
 protected:
  EngineSensitivity() : source_(cut_rank(config_, RankLayout{}, checkpoint_of("step0"))) {}

  std::vector<float>& values(const std::string& name) { return source_.tensors().at(name).values; }

  static std::string in_layer(std::int64_t layer, const std::string& name) {
    return fmt::format("model.layers.{}.{}", layer, name);
  }

  /// Swaps two neighbouring runs of `count` elements of a parameter, the first of which starts at `first`.
  void swap_runs(const std::string& name, std::int64_t first, std::int64_t count) {
    const auto begin = values(name).begin() + first;
    std::swap_ranges(begin, begin + count, begin + count);
  }

  Difference difference() {
    SoloGroup group;
    return measure(logits_of(Model(config_, RankLayout{}, source_, group), reference_), reference_);
  }

  std::vector<std::string> logit_objections() {
    Agreement agreement;
    agreement.own = difference();
    return objections(agreement, reference_, {});
  }

  ModelConfig config_ = trained_config();
  MemorySource source_;
  Reference reference_ = reference_of("step0");
};

TEST_F(EngineSensitivity, UndamagedWeightsPass) {
  EXPECT_TRUE(logit_objections().empty());
  EXPECT_LT(difference().relative(), kSumOrder);
}

TEST_F(EngineSensitivity, NoticesSwappedHalvesOfEveryExpertThatThePromptRoutesTo) {
  const std::int64_t half = config_.expert_width * config_.hidden;
  std::vector<std::pair<std::int64_t, std::int64_t>> unnoticed;
  for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
    const std::string w13 = in_layer(layer, "mlp.experts.w13_weight");
    for (std::int64_t expert = 0; expert < config_.experts; ++expert) {
      swap_runs(w13, expert * 2 * half, half);
      if (logit_objections().empty()) unnoticed.emplace_back(layer, expert);
      swap_runs(w13, expert * 2 * half, half);
    }
  }
  // No token of the prompt is routed to expert 4 of layer 0: its weights are out of these references' sight.
  EXPECT_EQ(unnoticed, (std::vector<std::pair<std::int64_t, std::int64_t>>{{0, 4}}));
}

TEST_F(EngineSensitivity, NoticesTheOtherOrderOfHalves) {
  RankLayout layout;
  layout.up_first = true;
  SoloGroup group;
  const Matrix logits = logits_of(Model(config_, layout, source_, group), reference_);
  EXPECT_GT(measure(logits, reference_).relative(), 0.1);
}

TEST_F(EngineSensitivity, NoticesSwappedNeighbouringHeads) {
  const std::int64_t head = config_.head_dim * config_.hidden;
  const std::int64_t q = config_.heads;
  const std::int64_t kv = config_.kv_heads;
  for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
    const std::string qkv = in_layer(layer, "self_attn.qkv_proj.weight");
    // Not across the borders of q, k and v; the last key and the last value head have no right neighbour.
    for (std::int64_t first = 0; first + 1 < q + 2 * kv; ++first) {
      if (first == q - 1 || first == q + kv - 1) continue;
      swap_runs(qkv, first * head, head);
      EXPECT_FALSE(logit_objections().empty()) << qkv << " heads " << first << " and " << first + 1;
      swap_runs(qkv, first * head, head);
    }
  }
}

TEST_F(EngineSensitivity, NoticesSwappedExperts) {
  for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
    swap_runs(in_layer(layer, "mlp.experts.w13_weight"), 0, 2 * config_.expert_width * config_.hidden);
    swap_runs(in_layer(layer, "mlp.experts.w2_weight"), 0, config_.expert_width * config_.hidden);
    EXPECT_FALSE(logit_objections().empty()) << "layer " << layer;
    source_ = MemorySource(cut_rank(config_, RankLayout{}, checkpoint_of("step0")));
  }
}

TEST_F(EngineSensitivity, NoticesEveryParameterLeftFromAnOldVersion) {
  const auto old = cut_rank(config_, RankLayout{}, checkpoint_of("step181"));
  for (const auto& [name, tensor] : old) {
    const Tensor kept = std::exchange(source_.tensors().at(name), tensor);
    EXPECT_FALSE(logit_objections().empty()) << name;
    source_.tensors().at(name) = kept;
  }
}

TEST_F(EngineSensitivity, NoticesEveryParameterLeftFromTheNeighbouringVersionAtATightTolerance) {
  // One optimiser step changes so little that one stale parameter may stay within kLogitTolerance.
  const auto old = cut_rank(config_, RankLayout{}, checkpoint_of("step1"));
  for (const auto& [name, tensor] : old) {
    const Tensor kept = std::exchange(source_.tensors().at(name), tensor);
    if (kept.values != tensor.values) {
      EXPECT_GT(difference().relative(), kSumOrder) << name;
    }
    source_.tensors().at(name) = kept;
  }
}

TEST_F(EngineSensitivity, NoticesRanksThatHoldEachOthersShards) {
  const FileSource checkpoint = checkpoint_of("step0");
  const auto check_swap = [&](const std::string& name) {
    const ThreadedReplica replica(config_, 2, 1, false, [&](const RankLayout& layout) {
      RankLayout other = layout;
      other.tp_rank = 1 - layout.tp_rank;
      MemorySource source(cut_rank(config_, layout, checkpoint));
      source.tensors().at(name) = cut_rank(config_, other, checkpoint).at(name);
      return source;
    });
    const Matrix logits = replica.run([&](const Model& model) { return logits_of(model, reference_); });
    EXPECT_GT(measure(logits, reference_).relative(), kLogitTolerance) << name;
  };
  check_swap("model.layers.1.self_attn.o_proj.weight");
  check_swap("model.layers.1.self_attn.qkv_proj.weight");
  check_swap("model.layers.1.mlp.experts.w2_weight");
}

TEST_F(EngineSensitivity, NoticesTheWrongVersion) {
  for (const std::string version : kVersions) {
    for (const std::string expected : kVersions) {
      const MemorySource source(cut_rank(config_, RankLayout{}, checkpoint_of(version)));
      SoloGroup group;
      const Model model(config_, RankLayout{}, source, group);
      const Reference own = reference_of(expected);
      const std::vector<Reference> others = references_but(expected);
      const std::vector<std::string> found = objections(compare(model, own, others, 0), own, others);
      EXPECT_EQ(found.empty(), version == expected) << version << " weights, " << expected << " reference";
    }
  }
}

TEST_F(EngineSensitivity, NoticesOneWrongGreedyToken) {
  Agreement agreement;
  agreement.own = {0, 1, 0};
  agreement.generated = reference_.greedy;
  EXPECT_TRUE(objections(agreement, reference_, {}).empty());
  ++agreement.generated.back();
  EXPECT_EQ(objections(agreement, reference_, {}).size(), 1U);
}

TEST_F(EngineSensitivity, ValuesThatAreNoNumbersNeverPass) {
  values("model.norm.weight").front() = std::numeric_limits<float>::quiet_NaN();
  EXPECT_FALSE(logit_objections().empty());
}

}  // namespace
}  // namespace weightcast::engine
