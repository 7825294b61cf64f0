// What the trained model does not exercise: dense layers, biases, tied embeddings, and shards that are wrong.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "engine/cut.hpp"
#include "engine/engine.hpp"
#include "engine/model_config.hpp"
#include "engine/thread_group.hpp"
#include "engine/vocabulary.hpp"

namespace weightcast::engine {
namespace {

constexpr std::array<std::int64_t, 6> kIds = {3, 69, 1, 42, 7, 7};

/// A small model with one dense layer between two with experts.
ModelConfig small_config() {
  ModelConfig config;
  config.layers = 3;
  config.hidden = 16;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 6;
  config.vocab = 70;
  config.experts = 4;
  config.experts_per_token = 2;
  config.expert_width = 8;
  config.dense_width = 12;
  config.rope_theta = 1000;
  config.rotary_dim = 6;
  config.norm_epsilon = 1e-6;
  config.router.normalize = true;
  config.attention_bias = true;
  config.tied_embeddings = true;
  config.attention.assign(3, AttentionKind::kGrouped);
  config.sparse = {true, false, true};
  return config;
}

MemorySource random_checkpoint(const ModelConfig& config) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0, 0.5);
  std::map<std::string, Tensor> tensors;
  const auto add = [&](const std::string& name, const Shape& shape) {
    std::vector<float> values(static_cast<std::size_t>(shape.elements()));
    for (float& value : values) value = normal(random);
    tensors[name] = {shape, values};
  };
  const auto add_mlp = [&](const std::string& prefix, std::int64_t width) {
    add(prefix + "gate_proj.weight", Shape{width, config.hidden});
    add(prefix + "up_proj.weight", Shape{width, config.hidden});
    add(prefix + "down_proj.weight", Shape{config.hidden, width});
  };
  add("model.embed_tokens.weight", Shape{config.vocab, config.hidden});
  if (!config.tied_embeddings) add("lm_head.weight", Shape{config.vocab, config.hidden});
  add("model.norm.weight", Shape{config.hidden});
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    add(prefix + "input_layernorm.weight", Shape{config.hidden});
    add(prefix + "post_attention_layernorm.weight", Shape{config.hidden});
    add(prefix + "self_attn.q_norm.weight", Shape{config.head_dim});
    add(prefix + "self_attn.k_norm.weight", Shape{config.head_dim});
    const std::int64_t q = config.heads * config.head_dim;
    const std::int64_t kv = config.kv_heads * config.head_dim;
    for (const auto& [name, rows] : std::map<std::string, std::int64_t>{{"q", q}, {"k", kv}, {"v", kv}}) {
      add(fmt::format("{}self_attn.{}_proj.weight", prefix, name), Shape{rows, config.hidden});
      add(fmt::format("{}self_attn.{}_proj.bias", prefix, name), Shape{rows});
    }
    add(prefix + "self_attn.o_proj.weight", Shape{config.hidden, q});
    add(prefix + "self_attn.o_proj.bias", Shape{config.hidden});
    if (!config.sparse[static_cast<std::size_t>(layer)]) {
      add_mlp(prefix + "mlp.", config.dense_width);
      continue;
    }
    add(prefix + "mlp.gate.weight", Shape{config.experts, config.hidden});
    for (std::int64_t expert = 0; expert < config.experts; ++expert) {
      add_mlp(fmt::format("{}mlp.experts.{}.", prefix, expert), config.expert_width);
    }
  }
  return MemorySource(std::move(tensors));
}

Matrix logits_of(const ModelConfig& config, const ParameterSource& checkpoint, std::int64_t tp,
                 std::int64_t ep) {
  const ThreadedReplica replica(config, tp, ep, false, [&](const RankLayout& layout) {
    return MemorySource(cut_rank(config, layout, checkpoint));
  });
  return replica.run([](const Model& model) { return model.logits(kIds); });
}

void expect_near(const Matrix& a, const Matrix& b) {
  ASSERT_EQ(a.values.size(), b.values.size());
  for (std::size_t i = 0; i < a.values.size(); ++i) ASSERT_NEAR(a.values[i], b.values[i], 1e-4) << i;
}

TEST(EngineForms, EveryCutComputesTheSame) {
  for (const bool tied : {true, false}) {
    ModelConfig config = small_config();
    config.tied_embeddings = tied;
    const MemorySource checkpoint = random_checkpoint(config);
    const Matrix whole = logits_of(config, checkpoint, 1, 1);
    expect_near(whole, logits_of(config, checkpoint, 2, 1));
    expect_near(whole, logits_of(config, checkpoint, 2, 2));
    expect_near(whole, logits_of(config, checkpoint, 4, 2));  // each key/value head on two ranks
    expect_near(whole, logits_of(config, checkpoint, 4, 4));
  }
}

TEST(EngineForms, ADenseLayerIsALayerWithOneExpert) {
  ModelConfig dense = small_config();
  dense.layers = 1;
  dense.sparse = {false};
  MemorySource checkpoint = random_checkpoint(dense);
  const Matrix expected = logits_of(dense, checkpoint, 2, 1);

  ModelConfig sparse = dense;
  sparse.sparse = {true};
  sparse.experts = 1;
  sparse.experts_per_token = 1;
  sparse.expert_width = dense.dense_width;
  auto& tensors = checkpoint.tensors();
  for (const char* name : {"gate_proj", "up_proj", "down_proj"}) {
    tensors[fmt::format("model.layers.0.mlp.experts.0.{}.weight", name)] =
        tensors.at(fmt::format("model.layers.0.mlp.{}.weight", name));
  }
  tensors["model.layers.0.mlp.gate.weight"] = {Shape{1, dense.hidden}, std::vector<float>(16, 1.0F)};
  expect_near(expected, logits_of(sparse, checkpoint, 2, 1));
}

TEST(EngineForms, BiasesCountOnce) {
  const ModelConfig config = small_config();
  MemorySource checkpoint = random_checkpoint(config);
  const Matrix before = logits_of(config, checkpoint, 4, 2);
  for (const char* name : {"q_proj", "v_proj", "o_proj"}) {
    auto& bias = checkpoint.tensors().at(fmt::format("model.layers.1.self_attn.{}.bias", name)).values;
    for (float& value : bias) value += 1;
    const Matrix after = logits_of(config, checkpoint, 4, 2);
    EXPECT_NE(before.values, after.values) << name;
    expect_near(after, logits_of(config, checkpoint, 1, 1));
    for (float& value : bias) value -= 1;
  }
}

/// The message with which a rank's shard is refused.
std::string refusal(const ModelConfig& config, const MemorySource& shard, const RankLayout& layout = {}) {
  SoloGroup group;
  try {
    const Model model(config, layout, shard, group);
  } catch (const InputError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(EngineForms, WrongShardsAreRefusedByName) {
  const ModelConfig config = small_config();
  const MemorySource good(cut_rank(config, RankLayout{}, random_checkpoint(config)));
  EXPECT_EQ(refusal(config, good), "accepted");

  MemorySource bad = good;
  bad.tensors().erase("model.layers.2.mlp.experts.w2_weight");
  EXPECT_EQ(refusal(config, bad), "parameter model.layers.2.mlp.experts.w2_weight is missing");

  bad = good;
  bad.tensors()["lm_head.weight"] = bad.tensors().at("model.embed_tokens.weight");
  EXPECT_EQ(refusal(config, bad), "parameter lm_head.weight is not part of the model");

  bad = good;
  bad.tensors().at("model.norm.weight").shape = Shape{1, 16};
  EXPECT_EQ(refusal(config, bad), "parameter model.norm.weight has shape [1, 16], the layout asks for [16]");

  bad = good;
  bad.tensors().at("model.embed_tokens.weight").values.back() = 1;
  EXPECT_EQ(refusal(config, bad), "parameter model.embed_tokens.weight: row 127 is padding but not zero");

  EXPECT_EQ(refusal(config, good, RankLayout{1, 2, 0, 1, false}),
            "the shard is tp rank 1 of 2, the process is rank 0 of 1");
  EXPECT_EQ(refusal(config, good, RankLayout{0, 1, 1, 1, false}), "tp rank 0 of 1 is ep rank 0 of 1, not 1");
}

TEST(EngineForms, TokensOutsideTheVocabularyAreRefused) {
  const ModelConfig config = small_config();
  SoloGroup group;
  const MemorySource source(cut_rank(config, RankLayout{}, random_checkpoint(config)));
  const Model model(config, RankLayout{}, source, group);
  EXPECT_THROW(model.logits(std::vector<std::int64_t>{70}), InputError);
  EXPECT_THROW(model.logits(std::vector<std::int64_t>{-1}), InputError);
}

TEST(EngineForms, GenerationStopsAfterAnEndToken) {
  ModelConfig config = small_config();
  const MemorySource source(cut_rank(config, RankLayout{}, random_checkpoint(config)));
  SoloGroup group;
  const auto free_run = Model(config, RankLayout{}, source, group).generate(kIds, 5);
  ASSERT_EQ(free_run.size(), kIds.size() + 5);
  config.end_tokens = {free_run[kIds.size()]};
  const auto ended = Model(config, RankLayout{}, source, group).generate(kIds, 5);
  EXPECT_EQ(ended.size(), kIds.size() + 1);
}

TEST(EngineConfig, ReadsBothGenerationsOfTransformers) {
  const std::string common =
      R"("model_type": "qwen3_moe", "num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4,
      "num_key_value_heads": 2, "vocab_size": 100, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
      "intermediate_size": 128, "rms_norm_eps": 1e-6, "mlp_only_layers": [1], "decoder_sparse_step": 2)";
  const ModelConfig old = parse_model_config("{" + common + R"(, "num_experts": 8, "rope_theta": 5e5,
      "rope_scaling": null, "torch_dtype": "bfloat16", "eos_token_id": 2})");
  EXPECT_EQ(old.experts, 8);
  EXPECT_EQ(old.head_dim, 16);
  EXPECT_EQ(old.rope_theta, 5e5);
  EXPECT_TRUE(old.bf16_frequencies);
  EXPECT_EQ(old.end_tokens, std::vector<std::int64_t>{2});
  EXPECT_EQ(old.sparse, (std::vector<bool>{false, false, false, true}));
  const ModelConfig now = parse_model_config("{" + common + R"(, "num_local_experts": 8, "head_dim": 32,
      "dtype": "float32", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
      "eos_token_id": [2, 3]})");
  EXPECT_EQ(now.experts, 8);
  EXPECT_EQ(now.head_dim, 32);
  EXPECT_EQ(now.rope_theta, 1e6);
  EXPECT_FALSE(now.bf16_frequencies);
  EXPECT_EQ(now.end_tokens, (std::vector<std::int64_t>{2, 3}));
  EXPECT_THROW(parse_model_config("{" + common + R"(, "num_experts": 8, "rope_theta": 1e6,
      "rope_scaling": {"rope_type": "yarn"}})"),
               InputError);
  EXPECT_THROW(parse_model_config("{" + common + "}"), InputError);
  EXPECT_THROW(parse_model_config("{"), InputError);
}

TEST(EngineConfig, DeepseeksStretchingScalesProductsOfQueriesAndKeys) {
  // As DeepSeek-V3's config.json has it; its attention multiplies with 0.1352 in place of 1/sqrt(192) =
  // 0.0722.
  const ModelConfig config = parse_model_config(
      R"({"model_type": "deepseek_v3", "num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4,
      "vocab_size": 100, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "intermediate_size": 128,
      "rms_norm_eps": 1e-6, "q_lora_rank": null, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
      "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 8, "n_shared_experts": 1, "n_group": 2,
      "topk_group": 1, "norm_topk_prob": true, "routed_scaling_factor": 2.5, "first_k_dense_replace": 3,
      "rope_theta": 10000, "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0,
      "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "type": "yarn"}})");
  EXPECT_EQ(config.yarn.factor, 40);
  EXPECT_EQ(config.yarn.scale, 1);
  EXPECT_NEAR(config.latent.scale / std::sqrt(128 + 64), 0.1352337788608801, 1e-12);
  EXPECT_EQ(config.sparse, (std::vector<bool>{false, false, false, true}));
  EXPECT_EQ(config.latent.query_rank, 0);
}

TEST(EngineVocabulary, ShowsBytesSpecialTokensAndEscapes) {
  const std::vector<std::int64_t> ids = {1, 'a' + 3, '\n' + 3, '\\' + 3, '\t' + 3, 0xe9 + 3, 2, 0};
  EXPECT_EQ(printable_text(ids, 259), R"(<bos>a\n\\\t\xe9<eos><pad>)");
  EXPECT_EQ(printable_text(std::vector<std::int64_t>{5, 70000}, 151936), "tokens 5 70000");
}

}  // namespace
}  // namespace weightcast::engine
