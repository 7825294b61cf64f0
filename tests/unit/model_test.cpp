#include <gtest/gtest.h>

#include <fmt/format.h>

#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/error.hpp"
#include "model/family.hpp"
#include "naive_model.hpp"

namespace weightcast {

namespace {

std::string text_of(const std::string& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file.good()) << path;
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string config_path(const std::string& model) {
  return fmt::format("{}/models/{}/config.json", WEIGHTCAST_TEST_DATA, model);
}

std::unique_ptr<Family> exported_family(const std::string& model) {
  return make_family(ModelConfig(text_of(config_path(model)), config_path(model)));
}

std::unique_ptr<Family> family_of(const nlohmann::json& config) {
  return make_family(ModelConfig(config.dump(), "x/config.json"));
}

nlohmann::json tiny_moe() {
  return nlohmann::json::parse(text_of(config_path("tiny-qwen3-moe")));
}

/// What an InputError (or another kind of error) says.
template <typename Expected = InputError>
std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Expected& error) {
    return error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another error: " << error.what();
    return "";
  }
  ADD_FAILURE() << "no error";
  return "";
}

void expect_has(const std::string& text, std::initializer_list<std::string_view> words) {
  for (const std::string_view word : words) {
    EXPECT_NE(text.find(word), std::string::npos) << "'" << word << "' is not in: " << text;
  }
}

class ExportedModel : public ::testing::TestWithParam<const char*> {};

TEST_P(ExportedModel, CatalogIsWhatTransformersWrites) {
  const std::string name = GetParam();
  const auto family = exported_family(name);
  const auto expected =
      nlohmann::json::parse(text_of(fmt::format("{}/models/{}/tensors.json", WEIGHTCAST_TEST_DATA, name)));
  EXPECT_EQ(family->catalog().size(), expected.size());
  for (const Tensor& tensor : family->catalog().tensors()) {
    ASSERT_TRUE(expected.contains(tensor.name)) << tensor.name;
    const auto& entry = expected[tensor.name];
    const auto shape = entry["shape"].get<std::vector<std::int64_t>>();
    EXPECT_EQ(tensor.shape, Shape(shape)) << tensor.name;
    EXPECT_EQ(dtype_safetensors_name(tensor.dtype), entry["dtype"].get<std::string>()) << tensor.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Tiny, ExportedModel, ::testing::Values("tiny-qwen3", "tiny-qwen3-moe"));

TEST(Qwen3, TiedHeadIsNoTensorButMayBeStored) {
  const auto tied = exported_family("tiny-qwen3");
  EXPECT_EQ(tied->catalog().find("lm_head.weight"), std::nullopt);
  EXPECT_TRUE(tied->may_ignore("lm_head.weight"));
  EXPECT_EQ(tied->copy_of("lm_head.weight"), "model.embed_tokens.weight");
  EXPECT_EQ(tied->copy_of("model.norm.weight"), std::nullopt);
  const auto untied = exported_family("tiny-qwen3-moe");
  EXPECT_TRUE(untied->catalog().find("lm_head.weight").has_value());
  EXPECT_FALSE(untied->may_ignore("lm_head.weight"));
  EXPECT_EQ(untied->copy_of("lm_head.weight"), std::nullopt);
  EXPECT_TRUE(untied->may_ignore("model.layers.0.self_attn.rotary_emb.inv_freq"));
  EXPECT_FALSE(untied->may_ignore("model.layers.99.input_layernorm.weight"));
}

TEST(Qwen3, PublishedModelsHaveTheirPublishedSizes) {
  const auto qwen30 = exported_family("Qwen3-30B-A3B");
  EXPECT_EQ(qwen30->catalog().size(), 18'867u);
  EXPECT_EQ(qwen30->catalog().bytes(), 61'064'245'248);
  const auto qwen235 = exported_family("Qwen3-235B-A22B");
  EXPECT_EQ(qwen235->catalog().size(), 36'945u);
  EXPECT_EQ(qwen235->catalog().bytes(), 470'187'269'120);
}

TEST(Qwen3, CatalogIsInNetworkOrder) {
  naive::Model model;
  model.moe = true;
  model.layers = 3;
  model.mlp_only_layers = {1};
  model.bias = true;
  const auto family = model.family();
  const std::vector<naive::Entry> expected = naive::tensors(model);
  ASSERT_EQ(family->catalog().size(), expected.size());
  for (std::uint32_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(family->catalog()[i].name, expected[i].name);
    EXPECT_EQ(family->catalog()[i].shape, expected[i].shape) << expected[i].name;
    EXPECT_EQ(family->catalog().at(expected[i].name), i);
  }
}

TEST(Qwen3, DenseLayersAmongTheSparse) {
  naive::Model model;
  model.moe = true;
  model.layers = 6;
  model.sparse_step = 2;  // layers 1, 3, 5 are sparse
  model.mlp_only_layers = {3};
  const auto family = model.family();
  const Catalog& catalog = family->catalog();
  for (std::int64_t layer = 0; layer < 6; ++layer) {
    const bool sparse = layer == 1 || layer == 5;
    const std::string at = fmt::format("model.layers.{}.mlp.", layer);
    EXPECT_EQ(catalog.find(at + "experts.0.gate_proj.weight").has_value(), sparse) << layer;
    EXPECT_EQ(catalog.find(at + "gate.weight").has_value(), sparse) << layer;
    EXPECT_EQ(catalog.find(at + "gate_proj.weight").has_value(), !sparse) << layer;
  }
}

TEST(Qwen3, BothSpellingsOfFields) {
  const nlohmann::json config = tiny_moe();
  const auto catalog_bytes = family_of(config)->catalog().bytes();
  nlohmann::json older = config;
  older["num_experts"] = older["num_local_experts"];
  older.erase("num_local_experts");
  older["torch_dtype"] = older["dtype"];
  older.erase("dtype");
  older["rope_theta"] = 10000.0;
  older.erase("rope_parameters");
  EXPECT_EQ(family_of(older)->catalog().bytes(), catalog_bytes);
  older["torch_dtype"] = "float32";
  EXPECT_EQ(family_of(older)->catalog().bytes(), 2 * catalog_bytes);
  // null counts as absent, and absent fields have the defaults of transformers.
  older["torch_dtype"] = nullptr;
  older.erase("decoder_sparse_step");
  older.erase("mlp_only_layers");
  older.erase("attention_bias");
  EXPECT_EQ(family_of(older)->catalog().bytes(), catalog_bytes);
  EXPECT_EQ(family_of(older)->catalog()[0].dtype, DType::kBF16);
}

TEST(Qwen3, HeadSizeDefaultsToTheHiddenSizeDivided) {
  nlohmann::json config = tiny_moe();
  config.erase("head_dim");
  const auto family = family_of(config);
  const Catalog& catalog = family->catalog();
  EXPECT_EQ(catalog[catalog.at("model.layers.0.self_attn.q_norm.weight")].shape, (Shape{256 / 8}));
}

TEST(Qwen3, BiasesWhereTheConfigHasThem) {
  nlohmann::json config = tiny_moe();
  config["attention_bias"] = true;
  const auto family = family_of(config);
  const Catalog& catalog = family->catalog();
  EXPECT_EQ(catalog[catalog.at("model.layers.2.self_attn.q_proj.bias")].shape, (Shape{512}));
  EXPECT_EQ(catalog[catalog.at("model.layers.2.self_attn.k_proj.bias")].shape, (Shape{128}));
  EXPECT_EQ(catalog[catalog.at("model.layers.2.self_attn.o_proj.bias")].shape, (Shape{256}));
}

TEST(Qwen3, AnotherNumberOfLayers) {
  ModelConfig config(text_of(config_path("Qwen3-30B-A3B")), "c");
  config.set_layers(3);
  EXPECT_EQ(make_family(config)->catalog().size(), 3u + 3 * 393);
  // What synth writes beside the weights describes those weights.
  EXPECT_EQ(make_family(ModelConfig(config.text(), "c"))->catalog().size(), 3u + 3 * 393);
}

TEST(ConfigErrors, NameFileAndField) {
  for (const char* field : {"hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                            "vocab_size", "moe_intermediate_size"}) {
    nlohmann::json config = tiny_moe();
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
  nlohmann::json config = tiny_moe();
  config.erase("num_local_experts");
  expect_has(message_of([&] { family_of(config); }), {"num_experts", "num_local_experts"});
}

TEST(ConfigErrors, OnlyTheFieldsThatAreUsedAreNeeded) {
  nlohmann::json config = tiny_moe();
  config.erase("intermediate_size");
  EXPECT_NO_THROW(family_of(config));
  config["mlp_only_layers"] = {0};
  expect_has(message_of([&] { family_of(config); }), {"intermediate_size"});
}

TEST(ConfigErrors, IllTypedFields) {
  const auto with = [](const char* field, const nlohmann::json& value) {
    nlohmann::json config = tiny_moe();
    config[field] = value;
    return message_of([&] { family_of(config); });
  };
  expect_has(with("attention_bias", 1), {"attention_bias", "true or false"});
  expect_has(with("tie_word_embeddings", "no"), {"tie_word_embeddings", "true or false"});
  expect_has(with("mlp_only_layers", 3), {"mlp_only_layers", "list of integers"});
  expect_has(with("mlp_only_layers", {1, "2"}), {"mlp_only_layers", "list of integers"});
  expect_has(with("decoder_sparse_step", 0), {"decoder_sparse_step", "positive integer"});
  expect_has(with("dtype", "int8"), {"int8", "bfloat16"});
  expect_has(with("dtype", 16), {"16", "bfloat16"});
  expect_has(with("architectures", {"LlamaForCausalLM"}), {"LlamaForCausalLM", "Qwen3MoeForCausalLM"});
  expect_has(with("architectures", nlohmann::json::array()), {"x/config.json", "architectures"});
  expect_has(with("architectures", nullptr), {"x/config.json", "architectures"});
}

TEST(ConfigErrors, WhatIsNoJsonObject) {
  for (const char* text : {"", "{", "[1]", "3", "{\"a\":1}x"}) {
    expect_has(message_of([&] { ModelConfig(text, "broken.json"); }), {"broken.json", "JSON"});
  }
}

TEST(Catalogs, ListNoNameTwice) {
  Catalog catalog;
  catalog.add("a", DType::kBF16, {1});
  EXPECT_THROW(catalog.add("a", DType::kBF16, {1}), InternalError);
  EXPECT_THROW(static_cast<void>(catalog.at("b")), InternalError);
}

TEST(StackedExperts, FormOfEveryMatrix) {
  const auto form = [](const char* name, Shape shape) -> std::string {
    const auto stored = stacked_expert_form({name, DType::kBF16, shape}, 16);
    return stored ? fmt::format("{} {} from row {}", stored->name, stored->shape.to_string(), stored->row)
                  : "";
  };
  EXPECT_EQ(form("model.layers.0.mlp.experts.3.gate_proj.weight", {8, 5}),
            "model.layers.0.mlp.experts.gate_up_proj [16, 16, 5] from row 48");
  EXPECT_EQ(form("model.layers.0.mlp.experts.3.up_proj.weight", {8, 5}),
            "model.layers.0.mlp.experts.gate_up_proj [16, 16, 5] from row 56");
  EXPECT_EQ(form("model.layers.0.mlp.experts.15.down_proj.weight", {5, 8}),
            "model.layers.0.mlp.experts.down_proj [16, 5, 8] from row 75");
  EXPECT_EQ(form("model.layers.0.mlp.gate_proj.weight", {8, 5}), "");
  EXPECT_EQ(form("model.layers.0.mlp.experts.x.gate_proj.weight", {8, 5}), "");
  EXPECT_EQ(form("model.layers.0.mlp.experts.3.gate_proj.bias", {8}), "");
}

}  // namespace

}  // namespace weightcast
