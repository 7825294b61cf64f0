#include <gtest/gtest.h>

#include <fmt/format.h>

#include "core/error.hpp"
#include "model_configs.hpp"
#include "naive_model.hpp"

namespace weightcast {

namespace {

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
  EXPECT_FALSE(tied->may_ignore("lm_head.weight"));
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

TEST(ConfigDefaults, AreThoseOfTransformersForAFieldThatIsMissingOrNull) {
  const auto rows = [](const nlohmann::json& config, const char* name) {
    const auto family = family_of(config);
    return family->catalog()[family->catalog().at(name)].shape.rows();
  };
  nlohmann::json qwen = tiny_moe();
  qwen["num_key_value_heads"] = nullptr;
  EXPECT_EQ(rows(qwen, "model.layers.0.self_attn.k_proj.weight"),
            rows(qwen, "model.layers.0.self_attn.q_proj.weight"));
  nlohmann::json config = tiny_moe();
  config["architectures"] = {"LlamaForCausalLM"};
  config["model_type"] = "llama";
  // The first Llama has no groups, and no field that says so.
  config["num_key_value_heads"] = nullptr;
  EXPECT_EQ(rows(config, "model.layers.0.self_attn.k_proj.weight"),
            rows(config, "model.layers.0.self_attn.q_proj.weight"));
  config.erase("num_key_value_heads");
  EXPECT_EQ(rows(config, "model.layers.0.self_attn.v_proj.weight"),
            rows(config, "model.layers.0.self_attn.q_proj.weight"));
  for (const char* field : {"head_dim", "attention_bias", "mlp_bias", "tie_word_embeddings", "dtype"}) {
    config[field] = nullptr;
  }
  const std::int64_t bytes = family_of(config)->catalog().bytes();
  EXPECT_EQ(rows(config, "model.layers.0.self_attn.q_proj.weight"), 256);
  for (const char* field : {"head_dim", "attention_bias", "mlp_bias", "tie_word_embeddings", "dtype"}) {
    config.erase(field);
  }
  EXPECT_EQ(family_of(config)->catalog().bytes(), bytes);
  // Qwen3 has a size of its own, whatever the hidden size is.
  config = tiny_moe();
  config["architectures"] = {"Qwen3ForCausalLM"};
  config["model_type"] = "qwen3";
  config.erase("head_dim");
  EXPECT_EQ(rows(config, "model.layers.0.self_attn.q_proj.weight"), 8 * 128);
  // Its library takes no null there, and engines differ in what they make of it.
  config["head_dim"] = nullptr;
  expect_has(message_of([&] { family_of(config); }),
             {"x/config.json", "'head_dim' is null", "leave the field out where it is 128"});
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

TEST(Catalogs, ListNoNameTwice) {
  Catalog catalog;
  catalog.add("a", DType::kBF16, {1});
  EXPECT_THROW(catalog.add("a", DType::kBF16, {1}), InternalError);
  EXPECT_THROW(static_cast<void>(catalog.at("b")), InternalError);
}

TEST(StackedExperts, FormOfEveryMatrix) {
  const auto family = family_of(tiny_moe());
  const auto form = [&](const char* name) -> std::string {
    const auto stored = family->other_stored_form(family->catalog()[family->catalog().at(name)]);
    return stored ? fmt::format("{} {} from row {}", stored->name, stored->shape.to_string(), stored->row)
                  : "";
  };
  EXPECT_EQ(form("model.layers.0.mlp.experts.3.gate_proj.weight"),
            "model.layers.0.mlp.experts.gate_up_proj [16, 256, 256] from row 768");
  EXPECT_EQ(form("model.layers.1.mlp.experts.3.up_proj.weight"),
            "model.layers.1.mlp.experts.gate_up_proj [16, 256, 256] from row 896");
  EXPECT_EQ(form("model.layers.2.mlp.experts.15.down_proj.weight"),
            "model.layers.2.mlp.experts.down_proj [16, 256, 128] from row 3840");
  EXPECT_EQ(form("model.layers.0.mlp.gate.weight"), "");
  EXPECT_EQ(form("model.embed_tokens.weight"), "");
}

TEST(Catalogs, TensorsCarryLayerAndExpert) {
  const auto family = family_of(tiny_moe());
  const auto place = [&](const char* name) {
    const Tensor& tensor = family->catalog()[family->catalog().at(name)];
    return std::pair(tensor.layer, tensor.expert);
  };
  EXPECT_EQ(place("model.layers.1.mlp.experts.3.up_proj.weight"),
            std::pair(std::int64_t{1}, std::int64_t{3}));
  EXPECT_EQ(place("model.layers.2.mlp.gate.weight"), std::pair(std::int64_t{2}, Tensor::kNone));
  EXPECT_EQ(place("lm_head.weight"), std::pair(Tensor::kNone, Tensor::kNone));
}

}  // namespace

}  // namespace weightcast
