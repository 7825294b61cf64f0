// What a config.json may say, how it may say it, and what is refused.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <ctime>
#include <string>
#include <vector>

#include "core/dtype.hpp"
#include "model/stored_quantization.hpp"
#include "model_configs.hpp"

namespace weightcast {

namespace {

using nlohmann::json;

json with(const char* field, const json& value) {
  json config = tiny_moe();
  config[field] = value;
  return config;
}

std::string refusal(const json& config) {
  return message_of([&] { family_of(config); });
}

std::string refusal_with(const char* field, const json& value) {
  return refusal(with(field, value));
}

bool is_moe(const Family& family) {
  return family.catalog().find("model.layers.0.mlp.gate.weight").has_value();
}

TEST(ConfigErrors, NameFileAndField) {
  for (const char* field : {"hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                            "vocab_size", "moe_intermediate_size"}) {
    json config = tiny_moe();
    config.erase(field);
    expect_has(message_of([&] { family_of(config); }), {"x/config.json", field, "missing"});
    config[field] = "many";
    expect_has(message_of([&] { family_of(config); }), {"x/config.json", field, "positive integer"});
    config[field] = 0;
    expect_has(message_of([&] { family_of(config); }), {"x/config.json", field, "positive integer"});
    config[field] = 8.5;
    expect_has(message_of([&] { family_of(config); }), {"x/config.json", field, "positive integer"});
    config[field] = 0xffffffffffffffffull;
    expect_has(message_of([&] { family_of(config); }), {"x/config.json", field, "positive integer"});
  }
  json config = tiny_moe();
  config.erase("num_local_experts");
  expect_has(message_of([&] { family_of(config); }), {"num_experts", "num_local_experts"});
}

TEST(ConfigErrors, OnlyTheFieldsThatAreUsedAreNeeded) {
  json config = tiny_moe();
  config.erase("intermediate_size");
  EXPECT_NO_THROW(family_of(config));
  config["mlp_only_layers"] = {0};
  expect_has(message_of([&] { family_of(config); }), {"intermediate_size"});
}

TEST(ConfigErrors, IllTypedFields) {
  expect_has(refusal_with("attention_bias", 1), {"attention_bias", "true or false"});
  expect_has(refusal_with("tie_word_embeddings", "no"), {"tie_word_embeddings", "true or false"});
  expect_has(refusal_with("mlp_only_layers", 3), {"mlp_only_layers", "list of integers"});
  expect_has(refusal_with("mlp_only_layers", {1, "2"}), {"mlp_only_layers", "list of integers"});
  expect_has(refusal_with("decoder_sparse_step", 0), {"decoder_sparse_step", "positive integer"});
  expect_has(refusal_with("dtype", "int8"), {"int8", "bfloat16"});
  expect_has(refusal_with("dtype", 16), {"16", "bfloat16"});
  expect_has(refusal_with("architectures", {"Qwen9MoeForCausalLM"}),
             {"Qwen9MoeForCausalLM", "not supported", "'Qwen2MoeForCausalLM'"});
  expect_has(refusal_with("model_type", 3), {"x/config.json", "model_type", "3", "text"});
  expect_has(refusal_with("architectures", {{"a", 1}}), {"x/config.json", "architectures", "list of texts"});
  expect_has(refusal_with("architectures", {"Qwen3MoeForCausalLM", 7}), {"architectures", "list of texts"});
}

TEST(ConfigErrors, WhatIsNoJsonObject) {
  for (const char* text : {"{", "[1]", "3", "{\"a\":1}x"}) {
    expect_has(message_of([&] { ModelConfig(text, "broken.json"); }), {"broken.json", "JSON"});
  }
  expect_has(message_of([&] { ModelConfig("", "broken.json"); }), {"broken.json", "empty"});
  expect_has(message_of([&] { ModelConfig("{\n \"a\": 1,\n}", "broken.json"); }),
             {"broken.json", "line 3, column 1", "comma"});
}

// The type of the weights.

DType dtype_of(const json& fields) {
  return ModelConfig(fields.dump(), "c").dtype();
}

TEST(ConfigDtype, IsReadAsTheFormatsOwnLibraryReadsIt) {
  EXPECT_EQ(dtype_of({{"dtype", "bfloat16"}, {"torch_dtype", "float32"}}), DType::kBF16);
  EXPECT_EQ(dtype_of({{"dtype", "float32"}, {"torch_dtype", "bfloat16"}}), DType::kF32);
  EXPECT_EQ(dtype_of({{"dtype", nullptr}, {"torch_dtype", "float16"}}), DType::kF16);
  EXPECT_EQ(dtype_of({{"text_config", {{"torch_dtype", "float32"}, {"dtype", "float16"}}}}), DType::kF16);
  EXPECT_EQ(dtype_of({{"torch_dtype", "float32"}, {"text_config", {{"dtype", "float16"}}}}), DType::kF32);
  EXPECT_EQ(dtype_of({{"text_config", nullptr}}), DType::kBF16);
  EXPECT_EQ(dtype_of({{"dtype", "torch.float16"}}), DType::kF16);
  EXPECT_EQ(dtype_of({{"dtype", "half"}}), DType::kF16);
  EXPECT_EQ(dtype_of({{"dtype", "float"}}), DType::kF32);
  // A wrong one is not passed over for another.
  expect_has(message_of([] { dtype_of({{"dtype", "auto"}, {"torch_dtype", "float32"}}); }), {"auto"});
}

// Which model it is.

TEST(ConfigModel, ArchitectureInEverySpelling) {
  const std::vector<json> spellings{"Qwen3MoeForCausalLM",
                                    {"Qwen3MoeForCausalLM"},
                                    {"FSDPQwen3MoeForCausalLM"},
                                    {"DDPFSDPQwen3MoeForCausalLM"},
                                    {"transformers.models.qwen3_moe.modeling_qwen3_moe.Qwen3MoeForCausalLM"},
                                    {"Qwen3MoEForCausalLM"},
                                    {"PeftModelForCausalLM", "Qwen3MoeForCausalLM"},
                                    {nullptr, "", "Qwen3MoeForCausalLM"}};
  for (const json& spelling : spellings) {
    json config = with("architectures", spelling);
    EXPECT_TRUE(is_moe(*family_of(config))) << spelling;
    config.erase("model_type");
    EXPECT_TRUE(is_moe(*family_of(config))) << spelling;
  }
}

TEST(ConfigModel, TypeDecidesWhereTheArchitectureDoesNot) {
  for (const json& nothing :
       std::vector<json>{nullptr, "", json::array(), {""}, {nullptr}, {"PeftModelForCausalLM"}}) {
    json config = with("architectures", nothing);
    EXPECT_TRUE(is_moe(*family_of(config))) << nothing;
    config["model_type"] = "qwen3";
    EXPECT_FALSE(is_moe(*family_of(config))) << nothing;
  }
  json config = tiny_moe();
  config.erase("architectures");
  EXPECT_TRUE(is_moe(*family_of(config)));
  config["model_type"] = "Qwen3-MoE";
  EXPECT_TRUE(is_moe(*family_of(config)));
  // Somebody's own class of the model that the type names, and a config that names two.
  EXPECT_TRUE(is_moe(*family_of(with("architectures", {"MyQwen3MoeForCausalLM"}))));
  EXPECT_TRUE(is_moe(*family_of(with("architectures", {"Qwen3ForCausalLM", "Qwen3MoeForCausalLM"}))));
}

TEST(ConfigModel, NamesThatDoNotDecide) {
  json config = tiny_moe();
  config.erase("architectures");
  config["model_type"] = "qwen3moe";
  expect_has(refusal(config), {"x/config.json", "model_type 'qwen3moe'", "'qwen3_moe'"});
  config["model_type"] = "qwen1";
  expect_has(refusal(config), {"model_type 'qwen1'", "'qwen2'"});
  for (const json& nothing : std::vector<json>{nullptr, ""}) {
    config["model_type"] = nothing;
    expect_has(refusal(config), {"x/config.json", "'architectures'", "'model_type'", "qwen3, qwen3_moe"});
  }
  config["architectures"] = {"Qwen3ForCausalLM", "Qwen3MoeForCausalLM"};
  expect_has(refusal(config), {"architectures", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "one of them"});
  config["architectures"] = {"MyQwen3MoeForCausalLM"};
  expect_has(refusal(config), {"MyQwen3MoeForCausalLM", "not supported"});
  expect_has(refusal(with("architectures", {"Qwen3MoeForSequenceClassification"})), {"not supported"});
  // Both are known, and differ.
  expect_has(refusal(with("architectures", {"Qwen3ForCausalLM"})),
             {"x/config.json", "Qwen3ForCausalLM", "'qwen3_moe'"});
  expect_has(refusal(with("architectures", "FSDPQwen3ForCausalLM")), {"Qwen3ForCausalLM", "'qwen3_moe'"});
}

TEST(ConfigModel, WhatALineShowsOfANameIsFitForATerminal) {
  const std::string line = refusal(with("architectures", {fmt::format("Evil\x1b[2J\nName{:x<5000}", "")}));
  expect_has(line, {"Evil\\x1b[2J\\nName"});
  EXPECT_LT(line.size(), 300u);
}

// Numbers that are none, and the file's own text.

TEST(ConfigText, PythonsNumbersHarmOnlyWhereTheyAreNeeded) {
  const std::string text = text_of(config_path("tiny-qwen3-moe"));
  const auto with_text = [&](const std::string& field, const std::string& value) {
    json config = tiny_moe();
    config[field] = "@";
    std::string changed = config.dump();
    return changed.replace(changed.find("\"@\""), 3, value);
  };
  for (const char* number :
       {"NaN", "Infinity", "-Infinity", "[0.0, Infinity]", "{\"a\": [-Infinity, NaN]}"}) {
    const std::string config = with_text("time_step_limit", number);
    EXPECT_TRUE(is_moe(*make_family(ModelConfig(config, "c")))) << number;
    for (const char* field : {"hidden_size", "num_local_experts", "tie_word_embeddings", "mlp_only_layers",
                              "dtype", "quantization_config"}) {
      expect_has(message_of([&] { make_family(ModelConfig(with_text(field, number), "c")); }),
                 {"c: ", field});
    }
  }
}

TEST(ConfigText, IsTheFilesOwnUntilSomethingIsChanged) {
  const std::string own = "{ \"architectures\": [\"Qwen3ForCausalLM\"],\n\t\"x\": NaN, \"layer_types\": [1]}";
  ModelConfig config(own, "c");
  EXPECT_EQ(config.text(), own);
  config.add_modelopt(R"({"quantization": {"quant_algo": null, "kv_cache_quant_algo": "FP8"}})", "m");
  EXPECT_EQ(config.text(), own);
  config.set_layers(5);
  const json changed = json::parse(config.text());
  EXPECT_EQ(changed, json({{"architectures", {"Qwen3ForCausalLM"}}, {"x", "NaN"}, {"num_hidden_layers", 5}}));
}

TEST(ConfigText, CostsNoMoreThanItsLimits) {
  for (const char* field : {"quantization_config", "rope_scaling"}) {
    std::string config = with(field, "@").dump();
    config.replace(config.find("\"@\""), 3, std::string(100'000, '[') + std::string(100'000, ']'));
    expect_has(message_of([&] { ModelConfig(config, "deep.json"); }), {"deep.json", "levels deep"});
  }
  ModelConfig config(tiny_moe().dump(), "c");
  expect_has(message_of([&] {
               config.add_modelopt(fmt::format("{{\"quantization\": {}", std::string(20'000, '[')), "m.json");
             }),
             {"m.json", "levels deep"});
  expect_has(message_of([&] { config.add_modelopt("{\"quantization\": {},}", "m.json"); }),
             {"m.json", "line 1, column 21", "comma"});
}

// Sizes.

/// Processor time, which does not depend on what else the machine does.
template <typename Work>
std::clock_t cost_of(const Work& work) {
  const std::clock_t start = std::clock();
  work();
  return std::clock() - start;
}

TEST(ConfigSizes, BeyondAnyModelAreRefusedBeforeAnythingIsListed) {
  const std::clock_t start = std::clock();
  for (const char* field :
       {"hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
        "head_dim", "moe_intermediate_size", "num_local_experts", "decoder_sparse_step"}) {
    for (const json& value : std::vector<json>{std::int64_t{1} << 31, 2147483647, std::int64_t{1} << 62, -1,
                                               0, 4.0, 1e30, "4", true, json::array(), json::object()}) {
      expect_has(refusal(with(field, value)), {"x/config.json", field, "positive integer"});
    }
  }
  const std::clock_t wrong_fields = std::clock() - start;
  // Each of these may be, but not together.
  constexpr std::int64_t kLarge = 1 << 24;
  for (const char* field : {"num_hidden_layers", "num_local_experts"}) {
    expect_has(refusal(with(field, kLarge)), {"x/config.json", "num_hidden_layers", "16777216", "tensors"});
  }
  json all = tiny_moe();
  for (const char* field : {"hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                            "vocab_size", "head_dim", "moe_intermediate_size", "num_local_experts"}) {
    all[field] = kLarge;
  }
  expect_has(refusal(all), {"x/config.json", "hidden_size 16777216", "bytes"});
  all["num_hidden_layers"] = 3;
  all["num_local_experts"] = 16;
  expect_has(refusal(all), {"x/config.json", "hidden_size 16777216", "bytes"});
  // To list sixteen million tensors would take thousands of times as long.
  EXPECT_LT(std::clock() - start, 500 * wrong_fields);
}

TEST(ConfigSizes, OfTheLargestModelsAreNot) {
  // As the largest mixtures have them, one and a half times over.
  json config = with("num_hidden_layers", 96);
  config["hidden_size"] = 7168;
  config["num_local_experts"] = 576;
  config["moe_intermediate_size"] = 2048;
  config["vocab_size"] = 262'144;
  EXPECT_GT(family_of(config)->catalog().bytes(), std::int64_t{2} << 40);
}

TEST(ConfigSizes, ListsOfLayersCostLittle) {
  json config = with("num_hidden_layers", 4000);
  std::vector<std::int64_t> dense(500'000);
  for (std::size_t i = 0; i < dense.size(); ++i) dense[i] = static_cast<std::int64_t>(i) - 1000;
  config["mlp_only_layers"] = dense;
  const std::string text = config.dump();
  const std::clock_t reading = cost_of([&] { EXPECT_EQ(json::parse(text), config); });
  // To look through the list for each layer would take a thousand times as long.
  EXPECT_LT(cost_of([&] { EXPECT_FALSE(is_moe(*family_of(config))); }), 30 * reading);
  // A step beyond the last layer, too, leaves none.
  EXPECT_FALSE(is_moe(*family_of(with("decoder_sparse_step", 1'000'000))));
}

// Codes in the checkpoint.

std::optional<StoredQuantization> stored_of(const json& quantization) {
  return StoredQuantization::of(
      ModelConfig(with("quantization_config", quantization).dump(), "x/config.json"));
}

std::string stored_refusal(const json& quantization) {
  return message_of([&] { stored_of(quantization); });
}

TEST(ConfigQuantization, WhatSaysNothingMeansValues) {
  EXPECT_FALSE(stored_of(nullptr));
  EXPECT_FALSE(stored_of(json::object()));
  expect_has(stored_refusal("fp8"), {"x/config.json", "quantization_config", "fp8", "object"});
  expect_has(stored_refusal({1, 2}), {"x/config.json", "quantization_config", "object"});
  expect_has(stored_refusal({{"bits", 4}}), {"x/config.json", "quantization_config", "not known"});
}

TEST(ConfigQuantization, OfTheCacheAloneMeansValues) {
  const json scheme{{"num_bits", 8}, {"type", "float"}};
  EXPECT_FALSE(stored_of({{"quant_method", "compressed-tensors"}, {"kv_cache_scheme", scheme}}));
  EXPECT_FALSE(stored_of({{"quant_method", "compressed-tensors"},
                          {"config_groups", json::object()},
                          {"kv_cache_scheme", scheme}}));
  const json outputs{{"weights", nullptr}, {"output_activations", scheme}, {"targets", {"re:.*k_proj"}}};
  EXPECT_FALSE(
      stored_of({{"quant_method", "compressed-tensors"}, {"config_groups", {{"group_0", outputs}}}}));
  EXPECT_FALSE(stored_of({{"quant_method", "compressed-tensors"},
                          {"format", "dense"},
                          {"config_groups", json::object()},
                          {"sparsity_config", {{"format", "dense"}}}}));
  EXPECT_FALSE(
      stored_of({{"quant_method", "modelopt"}, {"quant_algo", nullptr}, {"kv_cache_quant_algo", "FP8"}}));
  EXPECT_FALSE(stored_of({{"quant_method", "modelopt"}, {"kv_cache_scheme", scheme}}));
  const json quark{{"weight", nullptr}, {"output_tensors", {{"dtype", "fp8_e4m3"}}}};
  EXPECT_FALSE(stored_of({{"quant_method", "quark"},
                          {"global_quant_config", {{"weight", nullptr}}},
                          {"layer_quant_config", {{"*k_proj", quark}, {"*v_proj", quark}}}}));
  // Not when weights are quantised, too, or nothing says what is.
  EXPECT_TRUE(stored_of({{"quant_method", "fp8"}, {"kv_cache_scheme", "static"}}));
  EXPECT_TRUE(
      stored_of({{"quant_method", "modelopt"}, {"quant_algo", "FP8"}, {"kv_cache_quant_algo", "FP8"}}));
  expect_has(stored_refusal({{"quant_method", "compressed-tensors"}}), {"config_groups"});
  for (const char* method : {"bitsandbytes", "gptq", "awq", "torchao"}) {
    expect_has(stored_refusal({{"quant_method", method}}), {method, "if the weights are values", "remove"});
  }
  expect_has(stored_refusal({{"group_size", 64}, {"bits", 4}}), {"without quant_method", "remove"});
  expect_has(stored_refusal({{"quant_method", "modelopt"}}), {"modelopt"});
  for (const json& size : {json(0), json(32), json(-1), json("x"), json(16.5)}) {
    expect_has(stored_refusal({{"quant_method", "modelopt"}, {"quant_algo", "NVFP4"}, {"group_size", size}}),
               {"NVFP4 with group_size " + size.dump()});
  }
  // As ModelOpt's own file has it, and no text.
  for (const json& other : {json{{"quantization", {{"quant_algo", "FP8"}}}}, json{{"quant_algo", 8}}}) {
    json config = other;
    config["quant_method"] = "modelopt";
    const std::string said = stored_refusal(config);
    expect_has(said, {"'modelopt' needs quant_algo beside it", "a text"});
    EXPECT_EQ(said.find("not known"), std::string::npos) << said;
  }
  expect_has(stored_refusal({{"quant_method", "quark"},
                             {"global_quant_config", {{"weight", nullptr}}},
                             {"layer_quant_config", {{"*k_proj", {{"weight", {{"dtype", "fp8_e4m3"}}}}}}}}),
             {"quark"});
}

TEST(ConfigQuantization, KeptModulesAreNamesAndPatterns) {
  auto stored =
      stored_of({{"quant_method", "fp8"},
                 {"ignored_layers", {"lm_head", "model.layers.3", "re:.*o_proj$", "re:(?P<a>q)_proj"}},
                 {"exclude_modules", {"*.k_proj", "model.layers.7*down*"}},
                 {"ignore", nullptr}});
  ASSERT_TRUE(stored);
  auto prefixed = stored_of(
      {{"quant_method", "fp8"}, {"modules_to_not_convert", {"language_model.model.layers.0.self_attn"}}});
  EXPECT_TRUE(prefixed->keeps_values("model.layers.0.self_attn.q_proj"));
  EXPECT_FALSE(prefixed->keeps_values("model.layers.1.self_attn.q_proj"));
  for (const char* kept : {"lm_head", "model.layers.3.mlp.up_proj", "model.layers.1.self_attn.o_proj",
                           "q_proj_b", "model.layers.1.self_attn.k_proj", "model.layers.7.mlp.down_proj"}) {
    EXPECT_TRUE(stored->keeps_values(kept)) << kept;
  }
  for (const char* quantised : {"model.layers.33.mlp.up_proj", "model.layers.1.self_attn.q_proj",
                                "model.layers.1.self_attn.k_proj_b", "model.layers.6.mlp.down_proj"}) {
    EXPECT_FALSE(stored->keeps_values(quantised)) << quantised;
  }
}

TEST(ConfigQuantization, ListsOfModulesThatAreNone) {
  for (const json& list : std::vector<json>{"lm_head", 3, {{"lm_head", true}}, {"lm_head", 3}, {nullptr}}) {
    for (const char* field : {"modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules"}) {
      expect_has(stored_refusal({{"quant_method", "fp8"}, {field, list}}),
                 {"x/config.json", field, "list of texts"});
    }
  }
  expect_has(stored_refusal({{"quant_method", "fp8"}, {"ignored_layers", {"re:(\n"}}}),
             {"x/config.json", "quantization_config.ignored_layers", "re:(\\n", "no regular expression"});
}

TEST(ConfigQuantization, PatternsThatNeverEndAreRefused) {
  json config =
      with("quantization_config", {{"quant_method", "fp8"}, {"ignored_layers", {"re:([a-z_0-9.]+)+(X|Y)"}}});
  expect_has(refusal(config), {"x/config.json", "ignored_layers", "re:([a-z_0-9.]+)+(X|Y)", "too long"});
}

// What lies beside the weights.

TEST(BesideWeights, RotaryTablesOfEverySpelling) {
  const auto family = family_of(tiny_moe());
  for (const char* name :
       {"model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.0.self_attn.rotary_emb.cos_cached",
        "model.layers.0.self_attn.rotary_emb.sin_cached", "model.layers.0.self_attn.rotary_emb.cos_sin_cache",
        "model.rotary_emb.inv_freq", "model.rotary_emb.original_inv_freq", "rotary_emb.inv_freq",
        "model.rotary_pos_emb.inv_freq", "rotary_pos_emb.inv_freq", "model.layers.1.self_attn.inv_freq",
        "model.layers.0.self_attn.rotary_emb._cos_cached", "model.freqs_cis", "rope.freqs",
        "model.layers.0.self_attn.rotary_emb.long_inv_freq", "model.rotary_emb.cos"}) {
    EXPECT_TRUE(family->may_ignore(name)) << name;
  }
  for (const char* name : {"model.layers.0.self_attn.rotary_emb.weight", "model.rotary_emb_inv_freq_proj",
                           "model.layers.0.cos", "cos_cached.weight", "", ".", "model."}) {
    EXPECT_FALSE(family->may_ignore(name)) << name;
  }
}

TEST(BesideWeights, ScalesOfTheCacheAndOfActivations) {
  const auto values = family_of(tiny_moe());
  const auto codes = family_of(with("quantization_config", {{"quant_method", "fp8"}}));
  for (const char* leaf :
       {"k_scale", "v_scale", "q_scale", "kv_scale", "prob_scale", "attn.k_scale", "attn.prob_scale",
        "attn._v_scale", "k_proj.k_scale", "v_proj.v_scale", "k_proj.output_scale", "v_proj.output_scale",
        "q_proj.output_scale", "prob_output_scale", "kv_cache_scale", "k_zero_point"}) {
    const std::string name = std::string("model.layers.0.self_attn.") + leaf;
    EXPECT_TRUE(values->may_ignore(name)) << name;
    EXPECT_TRUE(codes->may_ignore(name)) << name;
  }
  const std::string activations = "model.layers.0.self_attn.q_proj.input_scale";
  EXPECT_TRUE(codes->may_ignore(activations));
  EXPECT_FALSE(values->may_ignore(activations));
  for (const char* name :
       {"model.layers.0.mlp.down_proj.output_scale", "model.layers.0.self_attn.k_proj.scale",
        "model.layers.0.self_attn.q_proj.weight_scale_inv"}) {
    EXPECT_FALSE(codes->may_ignore(name)) << name;
  }
}

TEST(BesideWeights, NothingThatTheModelNeedsIsIgnored) {
  for (const json& quantization : std::vector<json>{nullptr, {{"quant_method", "fp8"}}}) {
    json config = with("quantization_config", quantization);
    config["attention_bias"] = true;
    const auto family = family_of(config);
    for (const Tensor& tensor : family->catalog().tensors()) {
      ASSERT_FALSE(family->may_ignore(tensor.name)) << tensor.name;
    }
  }
}

}  // namespace

}  // namespace weightcast
