// What is particular to single model families: fields of their configs, what they refuse, their trainers.

#include <gtest/gtest.h>

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <string>

#include "model_configs.hpp"
#include "plan/plan.hpp"

namespace weightcast {

namespace {

using nlohmann::json;

json config_of(const std::string& model) {
  return json::parse(text_of(fmt::format("{}/vllm/{}/config.json", WEIGHTCAST_TEST_DATA, model)));
}

/// What a config says after a change of one field; null removes it.
std::string refusal(json config, const std::string& field, const json& value) {
  config[field] = value;
  return message_of([&] { family_of(config); });
}

std::set<std::string> names_of(const std::vector<TrainerTensor>& tensors) {
  std::set<std::string> names;
  for (const TrainerTensor& tensor : tensors) names.insert(tensor.held.name);
  return names;
}

class Trained : public ::testing::TestWithParam<const char*> {};

TEST_P(Trained, MegatronRanksHoldAllThatEnginesNeed) {
  const auto family = family_of(config_of(GetParam()));
  for (const auto& [tp, etp, ep] : {std::array{1, 1, 1}, std::array{2, 1, 2}, std::array{2, 2, 1}}) {
    Topology topology;
    TrainerLayout trainers;
    trainers.tp = tp;
    trainers.etp = etp;
    trainers.ep = ep;
    topology.trainers = trainers.ranks();
    topology.trainer_layout = trainers;
    topology.engine = parse_engine_layout("tp=2", "triton");
    // The plan's own proof: every element that a rank needs is sent once, by a trainer that holds it.
    EXPECT_NO_THROW(make_plan(*family, topology, Limits())) << tp << etp << ep;
  }
}

INSTANTIATE_TEST_SUITE_P(Families, Trained,
                         ::testing::Values("deepseek-v3", "deepseek-v3-noqlora", "deepseek-v32", "gemma4-moe",
                                           "glm4", "glm-moe-dsa", "glm4-moe", "glm4-moe-lite", "llama",
                                           "minimax-m2", "mistral", "nemotron-h", "qwen2", "qwen2-moe",
                                           "qwen3", "qwen3-moe", "qwen3-next", "qwen3.5", "qwen3.5-moe"));

TEST(Glm4Moe, DraftLayersAreLeftOut) {
  const auto family = family_of(config_of("glm4-moe"));  // three layers, one for drafts
  EXPECT_TRUE(family->may_ignore("model.layers.3.eh_proj.weight"));
  EXPECT_FALSE(family->may_ignore("model.layers.4.eh_proj.weight"));
  EXPECT_FALSE(family->may_ignore("model.layers.2.eh_proj.weight"));
  EXPECT_FALSE(family->may_ignore("model.layers.3"));
  json config = config_of("glm4-moe");
  config["num_nextn_predict_layers"] = 0;
  EXPECT_FALSE(family_of(config)->may_ignore("model.layers.3.eh_proj.weight"));
}

TEST(Glm4Moe, SizesOfItsLayers) {
  json config = config_of("glm4-moe");
  config["first_k_dense_replace"] = 0;
  config["n_shared_experts"] = 2;
  config.erase("intermediate_size");  // no layer is dense
  const auto family = family_of(config);
  const Catalog& catalog = family->catalog();
  EXPECT_EQ(catalog[catalog.at("model.layers.0.mlp.shared_experts.up_proj.weight")].shape, (Shape{48, 80}));
  expect_has(refusal(config, "first_k_dense_replace", 1), {"x/config.json", "intermediate_size", "missing"});
  expect_has(refusal(config, "first_k_dense_replace", -1), {"first_k_dense_replace", "-1", "from 0 on"});
  expect_has(refusal(config, "n_routed_experts", nullptr),
             {"n_routed_experts", "missing", "Glm4MoeForCausalLM"});
}

TEST(Glm4Moe, OnlyBfloat16IsWidened) {
  json config = config_of("glm4-moe");
  config["dtype"] = "float16";
  const auto half = family_of(config);
  EngineLayout vllm;
  vllm.engine = Engine::kVllm;
  expect_has(message_of([&] { half->parameters(vllm, {}); }),
             {"x/config.json", "model.layers.1.mlp.gate.weight is float16", "float32", "bfloat16"});
  EngineLayout as_module;
  as_module.engine = Engine::kHf;
  EXPECT_EQ(half->parameters(as_module, {}).size(), half->catalog().size());
  config["dtype"] = "float32";
  const auto wide = family_of(config);
  for (const Parameter& parameter : wide->parameters(vllm, {})) EXPECT_EQ(parameter.dtype, DType::kF32);
}

TEST(Glm4Moe, SglangKeepsTheRouterAsItIs) {
  const auto family = family_of(config_of("glm4-moe"));
  for (const Parameter& parameter : family->parameters({}, {})) {
    const bool bias = parameter.name.ends_with("e_score_correction_bias");
    EXPECT_EQ(parameter.dtype, bias ? DType::kF32 : DType::kBF16) << parameter.name;
  }
}

TEST(Glm4Moe, TrainersNames) {
  const auto family = family_of(config_of("glm4-moe"));
  const std::set<std::string> names = names_of(family->trainer_dense({}, 0, 0));
  for (const char* name :
       {"decoder.layers.0.mlp.linear_fc1.layer_norm_weight", "decoder.layers.1.pre_mlp_layernorm.weight",
        "decoder.layers.1.mlp.router.expert_bias", "decoder.layers.1.mlp.shared_experts.linear_fc1.weight",
        "decoder.layers.1.self_attention.linear_qkv.bias"}) {
    EXPECT_TRUE(names.contains(name)) << name;
  }
}

TEST(Deepseek, TypesOfOneClass) {
  json config = config_of("deepseek-v3");
  config["model_type"] = "kimi_k2";
  EXPECT_EQ(family_of(config)->catalog().size(), family_of(config_of("deepseek-v3"))->catalog().size());
  config["model_type"] = "qwen3";
  expect_has(message_of([&] { family_of(config); }), {"DeepseekV3ForCausalLM", "'qwen3'"});
}

TEST(Deepseek, CorrectionBiasWhereTheConfigSaysSoOrNothing) {
  json config = config_of("deepseek-v3");
  const std::string bias = "model.layers.1.mlp.gate.e_score_correction_bias";
  EXPECT_TRUE(family_of(config)->catalog().find(bias));
  config["topk_method"] = "noaux_tc";
  EXPECT_TRUE(family_of(config)->catalog().find(bias));
  config["topk_method"] = "greedy";
  EXPECT_FALSE(family_of(config)->catalog().find(bias));
}

TEST(Deepseek, BothEnginesNames) {
  const auto family = family_of(config_of("deepseek-v3"));
  const auto has = [&](Engine engine, const std::string& name) {
    EngineLayout layout;
    layout.engine = engine;
    const auto parameters = family->parameters(layout, {});
    return std::ranges::any_of(parameters,
                               [&](const Parameter& parameter) { return parameter.name == name; });
  };
  EXPECT_TRUE(has(Engine::kVllm, "model.layers.0.self_attn.fused_qkv_a_proj.weight"));
  EXPECT_TRUE(has(Engine::kSglang, "model.layers.0.self_attn.fused_qkv_a_proj_with_mqa.weight"));
}

TEST(Deepseek, HeadsAreNotCut) {
  const auto family = family_of(config_of("deepseek-v3"));
  EngineLayout layout;
  layout.tp = 8;
  expect_has(message_of<UsageError>([&] { family->parameters(layout, {}); }),
             {"tp=8", "attention heads", "(4)"});
}

TEST(Deepseek, BiasesAndContradictionsAreRefused) {
  expect_has(refusal(config_of("deepseek-v3"), "attention_bias", true), {"attention_bias", "not known"});
  expect_has(refusal(config_of("glm4-moe-lite"), "first_k_dense_replace", 2),
             {"layer 1 is sparse", "mlp_layer_types", "first_k_dense_replace"});
  expect_has(refusal(config_of("glm4-moe-lite"), "mlp_layer_types", json::array({"dense", "sparse"})),
             {"mlp_layer_types", "2 entries", "num_hidden_layers is 3"});
  expect_has(refusal(config_of("glm4-moe-lite"), "mlp_layer_types", json::array({"dense", "moe", "sparse"})),
             {"mlp_layer_types", "'moe'", "dense, sparse"});
  expect_has(refusal(config_of("deepseek-v3"), "kv_lora_rank", nullptr), {"kv_lora_rank", "missing"});
}

TEST(Deepseek, TrainersNames) {
  const auto latent = family_of(config_of("deepseek-v3"));
  std::set<std::string> names = names_of(latent->trainer_dense({}, 0, 0));
  for (const char* name :
       {"input_layernorm.weight", "self_attention.linear_q_down_proj.weight",
        "self_attention.linear_q_up_proj.layer_norm_weight", "self_attention.linear_kv_down_proj.weight",
        "self_attention.linear_kv_up_proj.layer_norm_weight", "self_attention.linear_proj.weight"}) {
    EXPECT_TRUE(names.contains(std::string("decoder.layers.1.") + name)) << name;
  }
  names = names_of(family_of(config_of("deepseek-v3-noqlora"))->trainer_dense({}, 0, 0));
  EXPECT_TRUE(names.contains("decoder.layers.1.self_attention.linear_q_proj.weight"));
}

TEST(GlmMoeDsa, TheThreeWaysToSayWhoseIndexer) {
  json config = config_of("glm-moe-dsa");  // full, full, shared, full
  const auto own = [&] {
    std::string found;
    const auto family = family_of(config);
    for (int layer = 0; layer < 4; ++layer) {
      found += family->catalog().find(fmt::format("model.layers.{}.self_attn.indexer.wk.weight", layer))
                   ? 'F'
                   : 'S';
    }
    return found;
  };
  EXPECT_EQ(own(), "FFSF");
  config.erase("indexer_types");
  EXPECT_EQ(own(), "FFFF");
  config["index_topk_freq"] = 2;
  EXPECT_EQ(own(), "FFSF");
  config["index_skip_topk_offset"] = 0;
  EXPECT_EQ(own(), "SFSF");
  config["index_topk_pattern"] = "FSSS";
  EXPECT_EQ(own(), "FSSS");
  expect_has(refusal(config, "index_topk_pattern", "FSX"), {"index_topk_pattern", "4 layers"});
  ModelConfig fewer(config.dump(), "x/config.json");
  fewer.set_layers(2);
  EXPECT_TRUE(make_family(fewer)->catalog().find("model.layers.0.self_attn.indexer.wk.weight"));
  EXPECT_FALSE(make_family(fewer)->catalog().find("model.layers.1.self_attn.indexer.wk.weight"));
  expect_has(refusal(config, "q_lora_rank", nullptr), {"'q_lora_rank' is null", "indexers"});
}

TEST(MiniMaxM2, HasNormsOfQueriesAndKeys) {
  expect_has(refusal(config_of("minimax-m2"), "use_qk_norm", false),
             {"x/config.json", "use_qk_norm", "MiniMaxM2ForCausalLM", "transformers writes true"});
}

TEST(MiniMaxM2, WhatTransformersHasInMemory) {
  const auto family = family_of(config_of("minimax-m2"));
  const Catalog& catalog = family->catalog();
  const auto form = [&](const std::string& name) {
    return family->other_stored_form(catalog[catalog.at("model.layers.1." + name)]).value_or(StoredForm{});
  };
  EXPECT_EQ(form("block_sparse_moe.gate.weight").name, "model.layers.1.mlp.gate.weight");
  EXPECT_EQ(form("block_sparse_moe.e_score_correction_bias").name,
            "model.layers.1.mlp.e_score_correction_bias");
  const StoredForm up = form("block_sparse_moe.experts.2.w3.weight");
  EXPECT_EQ(up.name, "model.layers.1.mlp.experts.gate_up_proj");
  EXPECT_EQ(up.shape, (Shape{6, 80, 80}));
  EXPECT_EQ(up.row, 2 * 80 + 40);
  EXPECT_EQ(form("block_sparse_moe.experts.2.w2.weight").name, "model.layers.1.mlp.experts.down_proj");
  EXPECT_EQ(form("input_layernorm.weight").name, "");
}

TEST(GptOss, OneLayout) {
  const auto family = family_of(config_of("gpt-oss"));
  EngineLayout layout;
  layout.moe_layout = "cutlass";
  expect_has(message_of<UsageError>([&] { family->parameters(layout, {}); }),
             {"--moe-layout cutlass", "triton"});
  layout = {};
  layout.quantizer = parse_quantizer("fp8-tensor");
  expect_has(message_of<UsageError>([&] { family->parameters(layout, {}); }),
             {"--quantize", "not quantised"});
  layout = {};
  layout.tp = 5;
  expect_has(message_of<UsageError>([&] { family->parameters(layout, {}); }), {"tp=5"});
}

TEST(GptOss, TrainersDoNotCutExperts) {
  const auto family = family_of(config_of("gpt-oss"));
  TrainerLayout trainers;
  trainers.ep = 2;
  const std::vector<TrainerTensor> held = family->trainer_experts(trainers, 0, 0, 1);
  ASSERT_EQ(held.size(), 2u * 3u * 4u);
  const TrainerTensor& fused = held.front();
  EXPECT_EQ(fused.held.name, "decoder.layers.0.mlp.experts.linear_fc1.weight0");
  EXPECT_EQ(fused.other_names,
            std::vector<std::string>{"decoder.layers.0.mlp.experts.local_experts.0.linear_fc1.weight"});
  EXPECT_EQ(fused.held.shape, (Shape{96, 80}));
  EXPECT_EQ(fused.held.parts.front().box, (Box{3 * 80, 80, 0, 96}));
  EXPECT_EQ(fused.turned, 2);
  EXPECT_EQ(held[1].held.name, "decoder.layers.0.mlp.experts.linear_fc1.bias0");
  trainers.etp = 2;
  expect_has(message_of<UsageError>([&] { family->trainer_experts(trainers, 0, 0, 0); }),
             {"--trainer-alloc", "model.layers.0.mlp.experts", "ffn:t1"});
}

TEST(GptOss, EnginesNames) {
  const auto family = family_of(config_of("gpt-oss"));
  const auto names = [&](Engine engine) {
    EngineLayout layout;
    layout.engine = engine;
    std::set<std::string> found;
    for (const Parameter& parameter : family->parameters(layout, {})) found.insert(parameter.name);
    return found;
  };
  const std::set<std::string> sglang = names(Engine::kSglang);
  for (const char* name :
       {"model.embed_tokens.weight", "model.layers.0.self_attn.sinks",
        "model.layers.0.mlp.experts.w13_weight_bias", "model.layers.0.mlp.experts.w2_weight"}) {
    EXPECT_TRUE(sglang.contains(name)) << name;
  }
  const std::set<std::string> vllm = names(Engine::kVllm);
  for (const char* name : {"model.embedding.weight", "model.layers.0.attn.sinks",
                           "model.layers.0.mlp.experts.routed_experts.w13_bias"}) {
    EXPECT_TRUE(vllm.contains(name)) << name;
  }
}

TEST(Hybrids, WhichLayersAreOfFullAttention) {
  json config = config_of("qwen3.5");
  const auto full = [&] {
    std::string found;
    const auto family = family_of(config);
    for (int layer = 0; layer < 4; ++layer) {
      found +=
          family->catalog().find(fmt::format("model.layers.{}.self_attn.o_proj.weight", layer)) ? 'F' : 'l';
    }
    return found;
  };
  EXPECT_EQ(full(), "lllF");
  config["layer_types"] = {"full_attention", "linear_attention", "full_attention", "full_attention"};
  EXPECT_EQ(full(), "FlFF");
  config.erase("layer_types");
  EXPECT_EQ(full(), "lllF");
  config["full_attention_interval"] = 2;
  EXPECT_EQ(full(), "lFlF");
  expect_has(refusal(config, "layer_types", json::array({"full_attention", "linear", "a", "b"})),
             {"layer_types", "'linear'", "linear_attention"});
  expect_has(refusal(config, "linear_num_value_heads", nullptr), {"linear_num_value_heads", "missing"});
}

TEST(Hybrids, LayersOfThePart) {
  ModelConfig config(config_of("qwen3.5").dump(), "x/config.json");
  config.set_layers(2);
  const auto part = make_family(config);
  EXPECT_TRUE(part->catalog().find("model.layers.1.linear_attn.A_log"));
  EXPECT_FALSE(part->catalog().find("model.layers.2.linear_attn.A_log"));
  config.set_layers(5);
  EXPECT_TRUE(make_family(config)->catalog().find("model.layers.4.linear_attn.A_log"));
  ModelConfig wrapper(config_of("qwen3.5-vl").dump(), "x/config.json");
  wrapper.set_layers(2);
  EXPECT_FALSE(make_family(wrapper)->catalog().find("model.layers.2.linear_attn.A_log"));
}

TEST(Hybrids, HeadsOfBothKindsAreCut) {
  const auto family = family_of(config_of("qwen3-next"));  // two key heads
  EngineLayout layout;
  layout.tp = 4;
  expect_has(message_of<UsageError>([&] { family->parameters(layout, {}); }), {"tp=4", "key heads", "(2)"});
}

TEST(Hybrids, DraftsAreLeftOut) {
  const auto family = family_of(config_of("qwen3.5-moe"));
  EXPECT_TRUE(family->may_ignore("mtp.layers.0.self_attn.q_proj.weight"));
  EXPECT_FALSE(family->may_ignore("mtpx.weight"));
}

TEST(Hybrids, SglangHasTheirAttentionInTheLayerItself) {
  for (const char* model : {"qwen3-next", "qwen3.5", "qwen3.5-moe"}) {
    std::set<std::string> sglang;
    std::set<std::string> vllm;
    const auto family = family_of(config_of(model));
    EngineLayout layout;
    for (const Parameter& parameter : family->parameters(layout, {})) sglang.insert(parameter.name);
    layout.engine = Engine::kVllm;
    for (const Parameter& parameter : family->parameters(layout, {})) vllm.insert(parameter.name);
    for (const char* name : {"qkv_proj", "o_proj", "q_norm", "k_norm"}) {
      EXPECT_TRUE(sglang.contains(fmt::format("model.layers.3.{}.weight", name))) << model;
      EXPECT_TRUE(vllm.contains(fmt::format("model.layers.3.self_attn.{}.weight", name))) << model;
    }
    EXPECT_TRUE(sglang.contains("model.layers.0.linear_attn.in_proj_qkvz.weight")) << model;
  }
}

TEST(Hybrids, AVisionTowerIsNotSentButMayBeLeftOut) {
  json config = config_of("qwen3.5-vl");  // without its vision_config
  const auto family = family_of(config);
  EXPECT_TRUE(family->may_ignore("model.visual.patch_embed.proj.weight"));
  EXPECT_TRUE(family->is_engines_own("visual.patch_embed.proj.weight"));
  EXPECT_FALSE(family->is_engines_own("language_model.model.norm.weight"));
  const auto first = [&](Engine engine) {
    EngineLayout layout;
    layout.engine = engine;
    return family->parameters(layout, {}).front().name;
  };
  EXPECT_EQ(first(Engine::kVllm), "language_model.model.embed_tokens.weight");
  EXPECT_EQ(first(Engine::kSglang), "model.embed_tokens.weight");
  expect_has(refusal(config, "vision_config", json::object()), {"vision_config", "vision tower", "--model"});
  expect_has(refusal(config, "text_config", nullptr), {"text_config", "missing"});
  expect_has(refusal(config, "text_config", "x"), {"text_config", "an object"});
  expect_has(refusal(config, "tie_word_embeddings", true),
             {"tie_word_embeddings", "true but false in text_config"});
  expect_has(refusal(config, "dtype", "float16"), {"'dtype' is \"float16\"", "\"bfloat16\" in text_config"});
  json moe = config["text_config"];
  moe["model_type"] = "qwen3_5_moe_text";
  expect_has(refusal(config, "text_config", moe),
             {"(text_config)", "'qwen3_5_moe_text'", "qwen3_5_text", "Qwen3_5ForConditionalGeneration"});
  config["text_config"].erase("hidden_size");
  expect_has(message_of([&] { family_of(config); }), {"(text_config)", "hidden_size", "missing"});
}

TEST(Hybrids, TrainersHoldGatesBehindTheQueriesOfAGroup) {
  const auto family = family_of(config_of("qwen3.5"));
  const Catalog& catalog = family->catalog();
  const std::vector<TrainerTensor> tensors = family->trainer_dense({}, 0, 0);
  const std::set<std::string> names = names_of(tensors);
  EXPECT_TRUE(names.contains("decoder.layers.0.self_attention.in_proj.weight"));
  const auto qkv = std::ranges::find(tensors, "decoder.layers.3.self_attention.linear_qkv.weight",
                                     [](const TrainerTensor& tensor) { return tensor.held.name; });
  ASSERT_NE(qkv, tensors.end());
  // Two groups of two heads of 32: in q_proj each head's query, then its gate.
  std::vector<std::int64_t> rows;
  for (const Part& part : qkv->held.parts) {
    if (catalog[part.tensor].name.ends_with("q_proj.weight")) rows.push_back(part.box.row);
  }
  EXPECT_EQ(rows, (std::vector<std::int64_t>{0, 64, 32, 96, 128, 192, 160, 224}));
}

TEST(Qwen2Moe, TrainersNames) {
  const auto family = family_of(config_of("qwen2-moe"));
  const std::set<std::string> names = names_of(family->trainer_dense({}, 0, 0));
  EXPECT_TRUE(names.contains("decoder.layers.0.mlp.shared_experts.gate_weight"));
  EXPECT_TRUE(names.contains("decoder.layers.0.mlp.shared_experts.linear_fc2.weight"));
}

TEST(Qwen2Moe, EveryFieldThatItNeeds) {
  for (const char* field : {"num_experts", "moe_intermediate_size", "shared_expert_intermediate_size"}) {
    expect_has(refusal(config_of("qwen2-moe"), field, nullptr), {field, "missing", "Qwen2MoeForCausalLM"});
  }
}

TEST(Hybrids, TrainersThatRunHuggingFacesModule) {
  TrainerLayout whole;
  whole.tp = 4;  // heads of linear attention are two
  whole.whole_linear_attention = true;
  const auto family = family_of(config_of("qwen3.5"));
  const std::vector<TrainerTensor> tensors = family->trainer_dense(whole, 0, 3);
  const std::set<std::string> names = names_of(tensors);
  EXPECT_TRUE(names.contains("decoder.layers.0.self_attention.linear_attn.in_proj_qkv.weight"));
  EXPECT_TRUE(names.contains("decoder.layers.0.self_attention.linear_attn.norm.weight"));
  for (const TrainerTensor& tensor : tensors) EXPECT_FALSE(tensor.less_one) << tensor.held.name;
  whole.whole_linear_attention = false;
  expect_has(message_of<UsageError>([&] { family->trainer_dense(whole, 0, 0); }),
             {"--trainer-alloc", "t=4", "key heads of model.layers.0.linear_attn (2)",
              "--trainer-linear-attention"});
}

TEST(Hybrids, OneNormIsHeldLessOne) {
  for (const TrainerTensor& tensor : family_of(config_of("qwen3-next"))->trainer_dense({}, 0, 0)) {
    EXPECT_EQ(tensor.less_one, tensor.held.name.ends_with(".out_norm.weight")) << tensor.held.name;
  }
}

TEST(Hybrids, OfTrainersThatSaySoNoNormIsHeldLessOne) {
  TrainerLayout layout;
  layout.plain_linear_norm = true;
  for (const TrainerTensor& tensor : family_of(config_of("qwen3-next"))->trainer_dense(layout, 0, 0))
    EXPECT_FALSE(tensor.less_one) << tensor.held.name;
}

TEST(Glm4, TrainersNamesOfNormsBehindHalves) {
  const auto family = family_of(config_of("glm4"));
  std::map<std::string, std::vector<std::string>> others;
  for (const TrainerTensor& tensor : family->trainer_dense({}, 0, 0))
    others[tensor.held.name] = tensor.other_names;
  const std::string at = "decoder.layers.0.";
  EXPECT_EQ(others.at(at + "post_self_attn_layernorm.weight"),
            std::vector<std::string>{at + "self_attention.post_self_attn_layernorm.weight"});
  EXPECT_EQ(others.at(at + "post_mlp_layernorm.weight"),
            std::vector<std::string>{at + "mlp.post_mlp_layernorm.weight"});
}

TEST(Hybrids, HeadsOfLinearAttentionInGroups) {
  for (const char* model : {"qwen3-next", "qwen3.5", "qwen3.5-moe"}) {
    expect_has(refusal(config_of(model), "linear_num_value_heads", 7),
               {"x/config.json", "linear_num_value_heads 7", "linear_num_key_heads 2"});
  }
}

std::map<std::string, Parameter> parameters_of(const Family& family, Engine engine, std::int64_t tp,
                                               std::int64_t rank) {
  EngineLayout layout;
  layout.engine = engine;
  layout.tp = tp;
  std::map<std::string, Parameter> found;
  for (const Parameter& parameter : family.parameters(layout, engine_rank(layout, rank))) {
    found.emplace(parameter.name, parameter);
  }
  return found;
}

TEST(Gemma4, HeadsOfLayersInBothSpellings) {
  json config = config_of("gemma4-dense");  // two layers that see a window, one that sees all
  const auto shape = [&](const json& of, const std::string& name) {
    const auto family = family_of(of);
    return family->catalog()[family->catalog().at("model.layers." + name)].shape;
  };
  EXPECT_EQ(shape(config, "2.self_attn.k_proj.weight"), (Shape{32, 64}));
  config["global_head_dim"] = 32;
  config["num_global_key_value_heads"] = 1;
  EXPECT_EQ(shape(config, "2.self_attn.q_norm.weight"), (Shape{32}));
  config.erase("per_layer_config");
  EXPECT_EQ(shape(config, "2.self_attn.q_proj.weight"), (Shape{128, 64}));
  EXPECT_EQ(shape(config, "2.self_attn.k_proj.weight"), (Shape{32, 64}));
  EXPECT_EQ(shape(config, "1.self_attn.k_proj.weight"), (Shape{32, 64}));
  config.erase("global_head_dim");
  EXPECT_EQ(shape(config, "2.self_attn.q_norm.weight"), (Shape{512}));
  config["global_head_dim"] = 32;
  // Only where values are keys the number of heads is another one.
  config["attention_k_eq_v"] = false;
  EXPECT_EQ(shape(config, "2.self_attn.v_proj.weight"), (Shape{64, 64}));
  config.erase("layer_types");
  config["num_hidden_layers"] = 8;
  std::string full;
  for (int layer = 0; layer < 8; ++layer) {
    full += shape(config, fmt::format("{}.self_attn.q_norm.weight", layer)) == Shape{32} ? 'F' : 'w';
  }
  EXPECT_EQ(full, "wwwwwFwF");
}

TEST(Gemma4, FieldsThatAreWrong) {
  const json config = config_of("gemma4-moe");
  expect_has(refusal(config, "global_head_dim", 64),
             {"layer 1 has head_dim 32 by field 'per_layer_config', which transformers writes",
              "64 by 'global_head_dim'", "Gemma4ForCausalLM"});
  expect_has(refusal(config, "num_global_key_value_heads", 1),
             {"layer 1 has num_key_value_heads 2", "1 by 'num_global_key_value_heads'"});
  expect_has(refusal(config, "per_layer_config", {{"2", {{"head_dim", 32}}}}),
             {"per_layer_config", "'2'", "0 to 1"});
  expect_has(refusal(config, "per_layer_config", {{"1", {{"intermediate_size", 32}}}}),
             {"per_layer_config", "'intermediate_size' for layer 1", "head_dim, num_key_value_heads"});
  expect_has(refusal(config, "per_layer_config", {{"1", 32}}), {"per_layer_config", "an object for a layer"});
  expect_has(refusal(config, "per_layer_config", {{"1", {{"num_key_value_heads", 3}}}}),
             {"num_attention_heads 4", "3 key and value heads of layer 1"});
  expect_has(refusal(config, "num_kv_shared_layers", 2), {"num_kv_shared_layers", "2 of 2 layers"});
  expect_has(refusal(config, "attention_bias", true), {"attention_bias", "transformers writes false"});
  for (const char* field : {"num_experts", "moe_intermediate_size", "intermediate_size"}) {
    expect_has(refusal(config, field, nullptr), {field, "missing", "Gemma4ForCausalLM"});
  }
  expect_has(refusal(config, "quantization_config", {{"quant_method", "fp8"}}),
             {"quantization_config", "not read of Gemma4ForCausalLM"});
}

TEST(Gemma4, LayersOfThePart) {
  ModelConfig config(config_of("gemma4-ple").dump(), "x/config.json");
  config.set_layers(3);
  const auto family = make_family(config);
  EXPECT_FALSE(family->catalog().find("model.layers.3.layer_scalar"));
  EXPECT_EQ(family->catalog()[family->catalog().at("model.per_layer_model_projection.weight")].shape,
            (Shape{48, 64}));
}

TEST(Gemma4, OfAPartTheFirstLayerHasKeysOfItsOwn) {
  const auto has_keys = [](std::int64_t shared) {
    json json_config = config_of("gemma4-dense");
    json_config["num_kv_shared_layers"] = shared;
    ModelConfig config(json_config.dump(), "x/config.json");
    config.set_layers(2);
    const auto family = make_family(config);
    std::string found;
    for (int layer = 0; layer < 2; ++layer) {
      const auto name = fmt::format("model.layers.{}.self_attn.k_proj.weight", layer);
      found += family->catalog().find(name) ? 'k' : '-';
    }
    return found;
  };
  EXPECT_EQ(has_keys(0), "kk");
  EXPECT_EQ(has_keys(1), "k-");
  EXPECT_EQ(has_keys(2), "k-");
}

TEST(Gemma4, WhatSglangHasOtherwise) {
  const auto moe = parameters_of(*family_of(config_of("gemma4-moe")), Engine::kSglang, 2, 1);
  // The embedding is whole, and not padded.
  EXPECT_EQ(moe.at("model.embed_tokens.weight").shape, (Shape{330, 64}));
  EXPECT_EQ(moe.at("model.layers.1.moe.experts.w13_weight").shape, (Shape{6, 24, 64}));
  EXPECT_TRUE(moe.contains("model.layers.1.moe.per_expert_scale"));
  EXPECT_TRUE(moe.contains("model.layers.1.router.scale"));
  const auto family = family_of(config_of("gemma4-ple"));
  const auto ple = parameters_of(*family, Engine::kSglang, 2, 1);
  EXPECT_EQ(ple.at("model.embed_tokens_per_layer.weight").shape, (Shape{330, 64}));
  EXPECT_EQ(ple.at("model.per_layer_model_projection.weight").shape, (Shape{64, 64}));
  // A layer with another one's keys and values has room for its own.
  const Parameter& qkv = ple.at("model.layers.3.self_attn.qkv_proj.weight");
  EXPECT_EQ(qkv.shape, (Shape{128, 64}));
  ASSERT_EQ(qkv.parts.size(), 1u);
  EXPECT_EQ(qkv.parts.front().box, (Box{64, 64, 0, 64}));
  ASSERT_EQ(qkv.untouched.size(), 1u);
  EXPECT_EQ(qkv.untouched.front().offset, 64 * 64 * 2);
  EXPECT_EQ(qkv.untouched.front().bytes, 64 * 64 * 2);
  EXPECT_TRUE(family->is_engines_own("model.layers.3.self_attn.k_norm.weight"));
  EXPECT_FALSE(family->is_engines_own("model.layers.1.self_attn.k_norm.weight"));
  EngineLayout stages;
  stages.pp = 2;
  expect_has(message_of<UsageError>([&] { family->parameters(stages, {}); }),
             {"pp=2", "embed_tokens_per_layer"});
  // The head of the last stage is one of its own.
  const auto dense = family_of(config_of("gemma4-moe"));
  const auto last = [&](Engine engine) {
    stages.engine = engine;
    return dense->parameters(stages, engine_rank(stages, 1)).back().name;
  };
  EXPECT_EQ(last(Engine::kSglang), "lm_head.weight");
  EXPECT_EQ(last(Engine::kVllm), "model.embed_tokens.weight");
}

TEST(Gemma4, TheTextModelOfOneThatSees) {
  json text = config_of("gemma4-moe");
  text.erase("architectures");
  json config{
      {"architectures", {"Gemma4ForConditionalGeneration"}}, {"model_type", "gemma4"}, {"text_config", text}};
  const auto family = family_of(config);
  const auto vllm = parameters_of(*family, Engine::kVllm, 1, 0);
  EXPECT_TRUE(vllm.contains("language_model.model.layers.0.experts.routed_experts.w13_weight"));
  const auto sglang = parameters_of(*family, Engine::kSglang, 1, 0);
  EXPECT_TRUE(sglang.contains("language_model.layers.0.moe.experts.w13_weight"));
  EXPECT_TRUE(sglang.contains("language_model.norm.weight"));
  EXPECT_TRUE(family->may_ignore("model.vision_tower.encoder.layers.0.mlp.gate_proj.linear.weight"));
  text = config_of("gemma4-ple");
  config["text_config"] = text;
  const auto shared = family_of(config);
  EXPECT_TRUE(shared->is_engines_own("language_model.layers.3.self_attn.k_norm.weight"));
  EXPECT_FALSE(shared->is_engines_own("language_model.layers.1.self_attn.k_norm.weight"));
  EXPECT_TRUE(shared->is_engines_own("vision_tower.encoder.layers.3.self_attn.k_norm.weight"));
  EXPECT_TRUE(family->may_ignore("model.embed_audio.embedding_projection.weight"));
  expect_has(refusal(config, "vision_config", json::object()),
             {"vision_config", "a vision tower", "--model"});
  expect_has(refusal(config, "audio_config", json::object()), {"audio_config", "an audio tower"});
}

TEST(Gemma4, OneLayoutAndFewTrainers) {
  const auto family = family_of(config_of("gemma4-moe"));
  EngineLayout layout;
  layout.moe_layout = "cutlass";
  expect_has(message_of<UsageError>([&] { family->parameters(layout, {}); }),
             {"--moe-layout cutlass", "stacked", "triton"});
  layout = {};
  layout.quantizer = parse_quantizer("fp8-tensor");
  expect_has(message_of<UsageError>([&] { family->parameters(layout, {}); }),
             {"--quantize", "not quantised"});
  expect_has(message_of<UsageError>([&] { family_of(config_of("gemma4-dense"))->parameters(layout, {}); }),
             {"--quantize", "model.layers.2.self_attn.k_proj"});
  json shared = config_of("gemma4-ple");
  expect_has(message_of<UsageError>([&] { family_of(shared)->trainer_dense({}, 0, 0); }),
             {"--trainer-alloc", "Gemma4ForCausalLM", "hidden_size_per_layer_input"});
  shared["hidden_size_per_layer_input"] = 0;
  expect_has(message_of<UsageError>([&] { family_of(shared)->trainer_experts({}, 0, 0, 0); }),
             {"--trainer-alloc", "Gemma4ForCausalLM", "num_kv_shared_layers"});
}

/// DeepSeek-V3 as the text model of Kimi-K2.5.
json kimi_config() {
  json text = config_of("deepseek-v3");
  text.erase("architectures");
  return {{"architectures", {"KimiK25ForConditionalGeneration"}},
          {"model_type", "kimi_k25"},
          {"tie_word_embeddings", false},
          {"text_config", text}};
}

TEST(KimiK25, IsDeepseekUnderOtherNames) {
  json config = kimi_config();
  const auto text = family_of(config_of("deepseek-v3"));
  const auto same_names = [](const Catalog& a, const Catalog& b) {
    return std::ranges::equal(a.tensors(), b.tensors(), {}, &Tensor::name, &Tensor::name);
  };
  for (const char* name : {"KimiK25ForConditionalGeneration", "Kimi_K25ForConditionalGeneration"}) {
    config["architectures"] = {name};
    EXPECT_TRUE(same_names(family_of(config)->catalog(), text->catalog())) << name;
  }
  config["text_config"]["model_type"] = "kimi_k2";
  const auto family = family_of(config);
  for (const Engine engine : {Engine::kVllm, Engine::kSglang}) {
    EngineLayout layout;
    layout.engine = engine;
    layout.tp = 2;
    const auto expected = text->parameters(layout, engine_rank(layout, 1));
    const auto found = family->parameters(layout, engine_rank(layout, 1));
    ASSERT_EQ(found.size(), expected.size());
    for (std::size_t i = 0; i < found.size(); ++i) {
      EXPECT_EQ(found[i].name, "language_model." + expected[i].name);
      EXPECT_EQ(found[i].shape, expected[i].shape);
    }
  }
  EXPECT_TRUE(family->is_engines_own("vision_tower.encoder.blocks.0.wo.weight"));
  EXPECT_TRUE(family->may_ignore("mm_projector.proj.0.bias"));
  EXPECT_TRUE(family->may_ignore("model.mm_projector.pre_norm.bias"));
  EXPECT_FALSE(family->may_ignore("projector.weight"));
}

TEST(KimiK25, FieldsThatAreWrong) {
  const json config = kimi_config();
  expect_has(refusal(config, "vision_config", json::object()),
             {"vision_config", "a vision tower", "--model"});
  expect_has(refusal(config, "text_config", nullptr),
             {"text_config", "missing", "KimiK25ForConditionalGeneration"});
  expect_has(refusal(config, "tie_word_embeddings", true),
             {"tie_word_embeddings", "transformers", "engines"});
  json text = config["text_config"];
  text["model_type"] = "llama";
  expect_has(refusal(config, "text_config", text), {"(text_config)", "model_type", "'llama'", "deepseek_v3"});
}

TEST(NemotronH, BothSpellingsOfTheMixers) {
  json config = config_of("nemotron-h");  // Mamba-2, experts, attention, MLP
  const auto kinds = [&] {
    std::string found;
    const auto family = family_of(config);
    const auto has = [&](std::size_t layer, const char* name) {
      return family->catalog().find(fmt::format("backbone.layers.{}.mixer.{}", layer, name)).has_value();
    };
    for (std::size_t layer = 0; layer < 4; ++layer) {
      found += has(layer, "A_log")            ? 'M'
               : has(layer, "gate.weight")    ? 'E'
               : has(layer, "q_proj.weight")  ? '*'
               : has(layer, "up_proj.weight") ? '-'
                                              : '?';
    }
    return found;
  };
  EXPECT_EQ(kinds(), "ME*-");
  config["hybrid_override_pattern"] = "ME*-";
  config["num_hidden_layers"] = 4;
  EXPECT_EQ(kinds(), "ME*-");
  config["layers_block_type"] = {"mamba", "moe", "attention", "mlp"};
  EXPECT_EQ(kinds(), "ME*-");
  config.erase("layers_block_type");
  EXPECT_EQ(kinds(), "ME*-");
  config["hybrid_override_pattern"] = "-M*E";
  EXPECT_EQ(kinds(), "-M*E");
  ModelConfig part(config.dump(), "x/config.json");
  part.set_layers(2);
  EXPECT_FALSE(make_family(part)->catalog().find("backbone.layers.2.norm.weight"));
}

TEST(NemotronH, MixersThatAreWrong) {
  json config = config_of("nemotron-h");
  expect_has(refusal(config, "layers_block_type", nullptr),
             {"layers_block_type", "transformers", "hybrid_override_pattern", "hub", "NemotronHForCausalLM"});
  expect_has(
      refusal(config, "hybrid_override_pattern", "MM*-"),
      {"layer 1 is moe by field 'layers_block_type'", "linear_attention by 'hybrid_override_pattern'"});
  expect_has(refusal(config, "hybrid_override_pattern", "ME*-M"), {"layer 4 is missing", "linear_attention"});
  expect_has(refusal(config, "hybrid_override_pattern", "ME"), {"4 entries", "2 letters"});
  expect_has(refusal(config, "hybrid_override_pattern", "MEx-"), {"'x' for layer 2", "M (Mamba-2)"});
  expect_has(refusal(config, "layers_block_type", json::array({"mamba2"})),
             {"layers_block_type", "'mamba2'", "linear_attention"});
  expect_has(refusal(config, "num_hidden_layers", 5), {"4 entries", "num_hidden_layers is 5"});
  config.erase("layers_block_type");
  config["hybrid_override_pattern"] = "ME*-";
  expect_has(refusal(config, "num_hidden_layers", 5), {"4 letters", "num_hidden_layers is 5"});
}

TEST(NemotronH, FieldsThatAreWrong) {
  const json config = config_of("nemotron-h");
  for (const char* field :
       {"mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel", "n_routed_experts",
        "moe_intermediate_size", "moe_shared_expert_intermediate_size", "intermediate_size"}) {
    expect_has(refusal(config, field, nullptr), {field});
  }
  for (const char* field : {"attention_bias", "mlp_bias", "use_bias", "mamba_proj_bias"}) {
    expect_has(refusal(config, field, true), {field, "NemotronHForCausalLM", "transformers writes false"});
  }
  expect_has(refusal(config, "n_groups", 4), {"mamba_num_heads 6", "n_groups 4", "NemotronHForCausalLM"});
  expect_has(refusal(config, "n_shared_experts", 2),
             {"n_shared_experts", "transformers", "engines", "write 1"});
  expect_has(refusal(config, "quantization_config", {{"quant_method", "fp8"}}),
             {"quantization_config", "not read of NemotronHForCausalLM"});
}

TEST(NemotronH, LatentExpertsAndNoSharedOnes) {
  json config = config_of("nemotron-h");
  config["moe_latent_size"] = 48;
  config["n_shared_experts"] = 0;
  config["use_conv_bias"] = false;
  const auto family = family_of(config);
  const Catalog& catalog = family->catalog();
  const auto shape = [&](const std::string& name) {
    return catalog[catalog.at("backbone.layers." + name)].shape;
  };
  EXPECT_EQ(shape("1.mixer.fc1_latent_proj.weight"), (Shape{48, 80}));
  EXPECT_EQ(shape("1.mixer.fc2_latent_proj.weight"), (Shape{80, 48}));
  EXPECT_EQ(shape("1.mixer.experts.5.up_proj.weight"), (Shape{40, 48}));
  EXPECT_EQ(shape("1.mixer.experts.5.down_proj.weight"), (Shape{48, 40}));
  EXPECT_FALSE(catalog.find("backbone.layers.1.mixer.shared_experts.up_proj.weight"));
  EXPECT_FALSE(catalog.find("backbone.layers.0.mixer.conv1d.bias"));
  EngineLayout layout;
  layout.tp = 2;
  std::map<std::string, Shape> shapes;
  for (const Parameter& parameter : family->parameters(layout, engine_rank(layout, 1))) {
    shapes.emplace(parameter.name, parameter.shape);
  }
  EXPECT_EQ(shapes.at("model.layers.1.mixer.fc1_latent_proj.weight"), (Shape{48, 80}));
  EXPECT_EQ(shapes.at("model.layers.1.mixer.experts.w13_weight"), (Shape{6, 20, 48}));
}

TEST(NemotronH, OneGroupIsOnEveryRank) {
  json config = config_of("nemotron-h");
  config["mamba_num_heads"] = 8;
  EngineLayout layout;
  layout.tp = 4;
  expect_has(message_of<UsageError>([&] { family_of(config)->parameters(layout, {}); }),
             {"tp=4", "the groups of backbone.layers.0.mixer", "(2)"});
  config["n_groups"] = 1;
  const auto family = family_of(config);
  const auto rows = [&](const std::string& name) {
    std::vector<std::pair<std::int64_t, std::int64_t>> found;
    for (const Parameter& parameter : family->parameters(layout, engine_rank(layout, 3))) {
      if (parameter.name != "model.layers.0.mixer." + name) continue;
      for (const Part& part : parameter.parts) found.emplace_back(part.box.row, part.box.rows);
    }
    return found;
  };
  using Rows = std::vector<std::pair<std::int64_t, std::int64_t>>;
  // z and x of 128 rows are cut four ways, B and C of 16 are not, dt of 8 is.
  EXPECT_EQ(rows("in_proj.weight"), (Rows{{96, 32}, {224, 32}, {256, 16}, {272, 16}, {294, 2}}));
  EXPECT_EQ(rows("conv1d.weight"), (Rows{{96, 32}, {128, 16}, {144, 16}}));
  // Megatron cuts groups, so it has no more ranks than there are.
  TrainerLayout trainers;
  trainers.tp = 4;
  expect_has(message_of<UsageError>([&] { family->trainer_dense(trainers, 0, 0); }),
             {"--trainer-alloc", "the groups of backbone.layers.0.mixer"});
}

TEST(NemotronH, TrainersNamesAndCuts) {
  const auto family = family_of(config_of("nemotron-h"));
  TrainerLayout layout;
  layout.tp = 2;
  const std::vector<TrainerTensor> tensors = family->trainer_dense(layout, 0, 1);
  const std::set<std::string> names = names_of(tensors);
  for (const char* name :
       {"decoder.layers.0.mixer.in_proj.layer_norm_weight", "decoder.layers.0.mixer.A_log",
        "decoder.layers.0.mixer.conv1d.bias", "decoder.layers.0.mixer.out_proj.weight",
        "decoder.layers.1.pre_mlp_layernorm.weight", "decoder.layers.1.mlp.router.expert_bias",
        "decoder.layers.1.mlp.shared_experts.linear_fc1.weight",
        "decoder.layers.2.self_attention.linear_qkv.layer_norm_weight",
        "decoder.layers.3.mlp.linear_fc1.layer_norm_weight", "decoder.layers.3.mlp.linear_fc2.weight",
        "decoder.final_norm.weight"}) {
    EXPECT_TRUE(names.contains(name)) << name;
  }
  for (const TrainerTensor& tensor : tensors) {
    for (const auto& [name, other] :
         {std::pair("conv1d.weight", "conv1d_weight"), {"conv1d.bias", "conv1d_bias"}}) {
      const std::string at = "decoder.layers.0.mixer.";
      if (tensor.held.name != at + name) continue;
      EXPECT_EQ(tensor.other_names, std::vector<std::string>{at + other});
    }
    for (const Part& part : tensor.held.parts) EXPECT_FALSE(part.negated_exp) << tensor.held.name;
    if (tensor.held.name != "decoder.layers.0.mixer.in_proj.weight") continue;
    std::vector<std::int64_t> rows;
    for (const Part& part : tensor.held.parts) rows.push_back(part.box.row);
    EXPECT_EQ(rows, (std::vector<std::int64_t>{48, 144, 208, 240, 259}));
  }
  std::set<std::string> experts;
  for (const TrainerTensor& tensor : family->trainer_experts(layout, 0, 0, 0))
    experts.insert(tensor.held.name);
  EXPECT_TRUE(experts.contains("decoder.layers.1.mlp.experts.linear_fc1.weight5"));
  EXPECT_EQ(experts.size(), 12u);
}

TEST(NemotronH, OneLayoutOfExperts) {
  const auto family = family_of(config_of("nemotron-h"));
  EngineLayout layout;
  layout.moe_layout = "cutlass";
  expect_has(message_of<UsageError>([&] { family->parameters(layout, {}); }),
             {"--moe-layout cutlass", "have no gate", "triton"});
  layout = {};
  layout.quantizer = parse_quantizer("fp8-tensor");
  expect_has(message_of<UsageError>([&] { family->parameters(layout, {}); }),
             {"--quantize", "have no gate", "not quantised"});
}

}  // namespace

}  // namespace weightcast
