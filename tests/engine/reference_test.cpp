// The engine's forward passes of other families than the trained model's, against what transformers computed
// in float32 from small random models.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "engine/agreement.hpp"
#include "engine/cut.hpp"
#include "engine/engine.hpp"
#include "engine/files.hpp"
#include "engine/model_config.hpp"
#include "engine/thread_group.hpp"

namespace weightcast::engine {
namespace {

/// A family's model and how near to its reference the engine comes. Both compute in float32 from the same
/// bfloat16 weights, so only the order of sums differs: 3e-6 of the greatest logit.
/// Linear attention divides by the root mean square of small states, and transformers computes it in blocks
/// of tokens: 2e-6 to 8e-5, of which the engine's own order of sums alone makes up to 6e-5.
struct Family {
  std::string name;
  double tolerance;
};

constexpr double kShared = 1e-5;
constexpr double kLinear = kLogitTolerance;

std::string path_of(const std::string& model, const std::string& file) {
  return fmt::format("{}/tiny/{}/{}", WEIGHTCAST_TEST_DATA, model, file);
}

ModelConfig config_of(const std::string& model) {
  ModelConfig config = parse_model_config(read_text(path_of(model, "config.json")));
  config.bf16_frequencies = false;  // the models were read in float32
  return config;
}

FileSource checkpoint_of(const std::string& model) {
  return FileSource(path_of(model, "model.safetensors"));
}

Reference reference_of(const std::string& model) {
  return read_reference(path_of(model, "reference.safetensors"));
}

using Parameters = std::map<std::string, Tensor>;

/// How far the logits of a whole model on one rank are from the reference's, relative to the greatest.
double distance(const ModelConfig& config, const Parameters& parameters, const Reference& reference) {
  SoloGroup group;
  const Model model(config, RankLayout{}, MemorySource(parameters), group);
  return measure(logits_of(model, reference), reference).relative();
}

struct Case {
  Family family;
  std::int64_t tp;
  std::int64_t ep;
  bool up_first;
};

class References : public testing::TestWithParam<Case> {};

TEST_P(References, AreMet) {
  const auto& [family, tp, ep, up_first] = GetParam();
  const ModelConfig config = config_of(family.name);
  const FileSource checkpoint = checkpoint_of(family.name);
  const Reference reference = reference_of(family.name);
  const ThreadedReplica replica(config, tp, ep, up_first, [&](const RankLayout& layout) {
    return MemorySource(cut_rank(config, layout, checkpoint));
  });
  const Matrix logits = replica.run([&](const Model& model) { return logits_of(model, reference); });
  EXPECT_LT(measure(logits, reference).relative(), family.tolerance);
}

std::string test_name(std::string name) {
  std::ranges::replace_if(
      name, [](char c) { return c == '-' || c == '.'; }, '_');
  return name;
}

std::string family_name(const testing::TestParamInfo<Family>& info) {
  return test_name(info.param.name);
}

std::string case_name(const testing::TestParamInfo<Case>& info) {
  return fmt::format("{}_tp{}_ep{}{}", test_name(info.param.family.name), info.param.tp, info.param.ep,
                     info.param.up_first ? "_cutlass" : "");
}

const Family kDeepseek{"deepseek-v3", kShared};
const Family kDeepseekNoQueryRank{"deepseek-v3-noqlora", kShared};
const Family kQwen35{"qwen3.5", kLinear};
const Family kQwen35Moe{"qwen3.5-moe", kLinear};
const Family kQwen3Next{"qwen3-next", kLinear};
const Family kGptOss{"gpt-oss", kShared};

INSTANTIATE_TEST_SUITE_P(
    Families, References,
    testing::Values(Case{kDeepseek, 1, 1, false}, Case{kDeepseek, 2, 1, true}, Case{kDeepseek, 2, 2, false},
                    Case{kDeepseek, 4, 2, false}, Case{kDeepseekNoQueryRank, 1, 1, false},
                    Case{kDeepseekNoQueryRank, 2, 2, false}, Case{kQwen35, 1, 1, false},
                    Case{kQwen35, 2, 1, false}, Case{kQwen35Moe, 1, 1, false}, Case{kQwen35Moe, 2, 1, true},
                    Case{kQwen35Moe, 2, 2, false}, Case{kQwen3Next, 1, 1, false},
                    Case{kQwen3Next, 2, 1, false}, Case{kQwen3Next, 2, 2, false}, Case{kGptOss, 1, 1, false},
                    Case{kGptOss, 2, 1, false}, Case{kGptOss, 2, 2, false}, Case{kGptOss, 4, 2, false}),
    case_name);

/// Whose padding gives a wrong part away before anything is computed.
bool is_vocabulary(const std::string& name) {
  return name == "model.embed_tokens.weight" || name == "lm_head.weight";
}

class EveryFamily : public testing::TestWithParam<Family> {};

/// Of each parameter that tensor parallelism cuts, ranks hold each other's.
TEST_P(EveryFamily, NoticesRanksThatHoldEachOthersPart) {
  const Family& family = GetParam();
  const ModelConfig config = config_of(family.name);
  const FileSource checkpoint = checkpoint_of(family.name);
  const Reference reference = reference_of(family.name);
  std::vector<Parameters> ranks;
  for (std::int64_t rank = 0; rank < 2; ++rank) {
    ranks.push_back(cut_rank(config, RankLayout{rank, 2, 0, 1}, checkpoint));
  }
  std::size_t exchanged = 0;
  for (const auto& [name, tensor] : ranks[0]) {
    if (is_vocabulary(name) || tensor.values == ranks[1].at(name).values) continue;
    // It is added once, whoever has it.
    if (name.ends_with("w2_weight_bias")) continue;
    // One layer of each kind is enough.
    if (name.starts_with("model.layers.1.") && config.layers > 3) continue;
    ++exchanged;
    const ThreadedReplica replica(config, 2, 1, false, [&](const RankLayout& layout) {
      Parameters own = ranks[static_cast<std::size_t>(layout.tp_rank)];
      own.at(name) = ranks[static_cast<std::size_t>(1 - layout.tp_rank)].at(name);
      return MemorySource(std::move(own));
    });
    const Matrix logits = replica.run([&](const Model& model) { return logits_of(model, reference); });
    EXPECT_GT(measure(logits, reference).relative(), 10 * family.tolerance) << name;
  }
  EXPECT_GT(exchanged, 10U);
}

/// The elements of a parameter stand in reverse.
TEST_P(EveryFamily, NoticesEveryParameterThatIsTurnedRound) {
  const Family& family = GetParam();
  const ModelConfig config = config_of(family.name);
  Parameters parameters = cut_rank(config, RankLayout{}, checkpoint_of(family.name));
  const Reference reference = reference_of(family.name);
  for (auto& [name, tensor] : parameters) {
    if (is_vocabulary(name)) continue;
    std::ranges::reverse(tensor.values);
    EXPECT_GT(distance(config, parameters, reference), 10 * family.tolerance) << name;
    std::ranges::reverse(tensor.values);
  }
}

INSTANTIATE_TEST_SUITE_P(All, EveryFamily,
                         testing::Values(kDeepseek, kDeepseekNoQueryRank, kQwen35, kQwen35Moe, kQwen3Next,
                                         kGptOss),
                         family_name);

/// Takes `first`'s rows and the `second` rows behind them, of each block of rows that starts with them, in
/// the other order.
void swap_in_blocks(Tensor& tensor, std::int64_t first, std::int64_t second) {
  const auto cols = static_cast<std::ptrdiff_t>(tensor.shape.elements() / tensor.shape[0]);
  const std::ptrdiff_t block = (first + second) * cols;
  for (auto at = tensor.values.begin(); at != tensor.values.end(); at += block) {
    std::rotate(at, at + first * cols, at + block);
  }
}

/// A layout of one parameter that an engine of the family, or of another one, could have had in mind.
struct WrongLayout {
  std::string what;
  std::function<void(ModelConfig&, Parameters&)> apply;
};

void expect_notices(const Family& family, const std::vector<WrongLayout>& layouts) {
  const Reference reference = reference_of(family.name);
  const FileSource checkpoint = checkpoint_of(family.name);
  for (const WrongLayout& layout : layouts) {
    ModelConfig config = config_of(family.name);
    Parameters parameters = cut_rank(config, RankLayout{}, checkpoint);
    layout.apply(config, parameters);
    EXPECT_GT(distance(config, parameters, reference), 10 * family.tolerance) << layout.what;
  }
}

TEST(WrongLayouts, OfLatentAttentionAndItsExpertsAreNoticed) {
  const ModelConfig config = config_of("deepseek-v3");
  const LatentSizes& sizes = config.latent;
  const std::string attention = "model.layers.1.self_attn.";
  const std::string mlp = "model.layers.1.mlp.";
  const auto swapped = [](const std::string& name, std::int64_t first, std::int64_t second) {
    return [=](auto&, Parameters& parameters) { swap_in_blocks(parameters.at(name), first, second); };
  };
  expect_notices(
      kDeepseek,
      {{"keys and values before queries", swapped(attention + "fused_qkv_a_proj_with_mqa.weight",
                                                  sizes.query_rank, sizes.kv_rank + sizes.rope_dim)},
       {"what turns first of a query",
        swapped(attention + "q_b_proj.weight", sizes.nope_dim, sizes.rope_dim)},
       {"values before keys", swapped(attention + "kv_b_proj.weight", sizes.nope_dim, sizes.value_dim)},
       {"the keys of all heads before all values",
        [&](auto&, Parameters& parameters) {
          Tensor& whole = parameters.at(attention + "kv_b_proj.weight");
          const Tensor by_head = whole;
          const auto cols = static_cast<std::size_t>(sizes.kv_rank);
          const std::int64_t rows = sizes.nope_dim + sizes.value_dim;
          auto to = whole.values.begin();
          for (const auto& [first, count] :
               {std::pair{std::int64_t{0}, sizes.nope_dim}, std::pair{sizes.nope_dim, sizes.value_dim}}) {
            for (std::int64_t head = 0; head < config.heads; ++head) {
              const Matrix of =
                  cut_rows(by_head, head * rows + first, count, static_cast<std::int64_t>(cols));
              to = std::ranges::copy(of.values, to).out;
            }
          }
        }},
       {"neighbours do not turn together",
        [](ModelConfig& wrong, auto&) { wrong.rotary_neighbours = !wrong.rotary_neighbours; }},
       {"experts are chosen from all groups", [](ModelConfig& wrong, auto&) { wrong.router.groups = 1; }},
       {"no correction bias",
        [](ModelConfig& wrong, Parameters& parameters) {
          wrong.router.correction_bias = false;
          for (const char* layer : {"1", "2"}) {
            parameters.erase(fmt::format("model.layers.{}.mlp.gate.e_score_correction_bias", layer));
          }
        }},
       {"up before gate of the shared experts",
        swapped(mlp + "shared_experts.gate_up_proj.weight", config.shared_width, config.shared_width)},
       {"up before gate of the experts", [&](auto&, Parameters& parameters) {
          Tensor& w13 = parameters.at(mlp + "experts.w13_weight");
          w13.shape = {config.experts * 2 * config.expert_width, config.hidden};
          swap_in_blocks(w13, config.expert_width, config.expert_width);
          w13.shape = {config.experts, 2 * config.expert_width, config.hidden};
        }}});
}

TEST(WrongLayouts, OfLinearAttentionAndGatesAreNoticed) {
  const ModelConfig config = config_of("qwen3.5-moe");
  const DeltaSizes& sizes = config.delta;
  const std::string linear = "model.layers.1.linear_attn.";
  const std::int64_t queries = sizes.key_heads * sizes.key_dim;
  const std::int64_t values = sizes.value_heads * sizes.value_dim;
  const auto swapped = [](const std::string& name, std::int64_t first, std::int64_t second) {
    return [=](auto&, Parameters& parameters) { swap_in_blocks(parameters.at(name), first, second); };
  };
  /// The rows of two sections that follow one another behind `before` rows.
  const auto sections = [](const std::string& name, std::int64_t before, std::int64_t first,
                           std::int64_t second) {
    return [=](auto&, Parameters& parameters) {
      Tensor& tensor = parameters.at(name);
      const auto cols = static_cast<std::ptrdiff_t>(tensor.shape.elements() / tensor.shape[0]);
      const auto at = tensor.values.begin() + before * cols;
      std::rotate(at, at + first * cols, at + (first + second) * cols);
    };
  };
  const std::string qkvz = linear + "in_proj_qkvz.weight";
  const std::string kernel = linear + "conv1d.weight";
  expect_notices(
      kQwen35Moe,
      {{"grouped by key head, as Qwen3-Next's",
        [](ModelConfig& wrong, auto&) { wrong.delta.by_key_head = true; }},
       {"keys before queries", sections(qkvz, 0, queries, queries)},
       {"gates before values", sections(qkvz, 2 * queries, values, values)},
       {"steps before strengths",
        swapped(linear + "in_proj_ba.weight", sizes.value_heads, sizes.value_heads)},
       {"the kernel's keys before its queries", sections(kernel, 0, queries, queries)},
       {"the kernel's values before its keys", sections(kernel, queries, queries, values)},
       {"neighbouring heads' decay", swapped(linear + "A_log", 1, 1)},
       {"neighbouring heads' step", swapped(linear + "dt_bias", 1, 1)},
       {"a gate before its query",
        [&](auto&, Parameters& parameters) {
          Tensor& qkv = parameters.at("model.layers.3.qkv_proj.weight");
          Tensor heads = qkv;
          heads.shape = {2 * config.heads * config.head_dim, config.hidden};
          heads.values.resize(static_cast<std::size_t>(heads.shape.elements()));
          swap_in_blocks(heads, config.head_dim, config.head_dim);
          std::ranges::copy(heads.values, qkv.values.begin());
        }},
       {"norms as they are stored", [](ModelConfig& wrong, auto&) { wrong.norms_add_one = false; }},
       {"whole heads turn", [](ModelConfig& wrong, auto&) { wrong.rotary_dim = wrong.head_dim; }},
       {"up before gate of the shared expert", swapped("model.layers.1.mlp.shared_expert.gate_up_proj.weight",
                                                       config.shared_width, config.shared_width)}});
  expect_notices(kQwen3Next, {{"not grouped by key head, as Qwen3.5's",
                               [](ModelConfig& wrong, auto&) { wrong.delta.by_key_head = false; }}});
}

TEST(WrongLayouts, ABiasThatIsAddedTwiceIsNoticed) {
  const ModelConfig config = config_of("gpt-oss");
  const FileSource checkpoint = checkpoint_of("gpt-oss");
  const Reference reference = reference_of("gpt-oss");
  const std::string name = "model.layers.0.mlp.experts.w2_weight_bias";
  const ThreadedReplica replica(config, 2, 1, false, [&](const RankLayout& layout) {
    Parameters own = cut_rank(config, layout, checkpoint);
    own.at(name) = cut_rank(config, RankLayout{0, 2, 0, 1}, checkpoint).at(name);
    return MemorySource(std::move(own));
  });
  const Matrix logits = replica.run([&](const Model& model) { return logits_of(model, reference); });
  EXPECT_GT(measure(logits, reference).relative(), 10 * kShared);
}

TEST(WrongLayouts, OfSinksWindowsAndRowsInTurnAreNoticed) {
  const ModelConfig config = config_of("gpt-oss");
  const std::string w13 = "model.layers.1.mlp.experts.w13_weight";
  const auto swapped = [](const std::string& name, std::int64_t first, std::int64_t second) {
    return [=](auto&, Parameters& parameters) { swap_in_blocks(parameters.at(name), first, second); };
  };
  expect_notices(kGptOss,
                 {{"up before gate",
                   [&](auto&, Parameters& parameters) {
                     Tensor& tensor = parameters.at(w13);
                     const Shape shape = tensor.shape;
                     tensor.shape = {config.experts * 2 * config.expert_width, config.hidden};
                     swap_in_blocks(tensor, 1, 1);
                     tensor.shape = shape;
                   }},
                  {"gate and up one behind the other",
                   [&](auto&, Parameters& parameters) {
                     Tensor& tensor = parameters.at(w13);
                     const Tensor in_turn = tensor;
                     auto to = tensor.values.begin();
                     for (std::int64_t expert = 0; expert < config.experts; ++expert) {
                       for (std::int64_t half = 0; half < 2; ++half) {
                         for (std::int64_t row = half; row < 2 * config.expert_width; row += 2) {
                           const Matrix one =
                               cut_rows(in_turn, expert * 2 * config.expert_width + row, 1, config.hidden);
                           to = std::ranges::copy(one.values, to).out;
                         }
                       }
                     }
                   }},
                  {"neighbouring heads' sinks", swapped("model.layers.0.self_attn.sinks", 1, 1)},
                  {"all tokens are seen", [](ModelConfig& wrong, auto&) { wrong.window.clear(); }},
                  {"nothing is stretched", [](ModelConfig& wrong, auto&) { wrong.yarn = {}; }},
                  {"stretched, but not scaled", [](ModelConfig& wrong, auto&) { wrong.yarn.scale = 1; }}});
}

}  // namespace
}  // namespace weightcast::engine
