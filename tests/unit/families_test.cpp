// What is particular to single model families: fields of their configs, what they refuse, their trainers.

#include <gtest/gtest.h>

#include <fmt/format.h>

#include <array>
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
                         ::testing::Values("glm4-moe", "llama", "mistral", "qwen2", "qwen2-moe", "qwen3",
                                           "qwen3-moe"));

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
  expect_has(message_of([&] { half->parameters({}, {}); }),
             {"x/config.json", "model.layers.1.mlp.gate.weight is float16", "float32", "bfloat16"});
  EngineLayout as_module;
  as_module.engine = Engine::kHf;
  EXPECT_EQ(half->parameters(as_module, {}).size(), half->catalog().size());
  config["dtype"] = "float32";
  const auto wide = family_of(config);
  for (const Parameter& parameter : wide->parameters({}, {})) EXPECT_EQ(parameter.dtype, DType::kF32);
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

TEST(Glm4, TrainersAreNotKnown) {
  const auto family = family_of(config_of("glm4"));
  TrainerLayout layout;
  layout.option = "--trainer-alloc";
  expect_has(message_of<UsageError>([&] { family->trainer_dense(layout, 0, 0); }),
             {"--trainer-alloc", "post_self_attn_layernorm"});
}

}  // namespace

}  // namespace weightcast
