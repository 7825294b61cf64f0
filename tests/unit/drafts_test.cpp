// Draft layers (MTP, nextn): which tensors they have, what engines call them, and that they are sent whole.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "emulated_update.hpp"
#include "model_configs.hpp"
#include "plan/plan.hpp"
#include "plan/rank_plan.hpp"

namespace weightcast {

namespace {

using nlohmann::json;

json config_of(const std::string& model, const json& changes = json::object()) {
  json config = json::parse(text_of(fmt::format("{}/vllm/{}/config.json", WEIGHTCAST_TEST_DATA, model)));
  config.update(changes);
  return config;
}

std::unique_ptr<Family> family_of(const json& config, Drafts drafts) {
  ModelConfig of_model(config.dump(), "x/config.json");
  of_model.set_drafts(drafts);
  return make_family(of_model);
}

EngineLayout layout_of(Engine engine, std::int64_t tp = 1) {
  EngineLayout layout;
  layout.engine = engine;
  layout.tp = tp;
  return layout;
}

/// The parameters that are there beside those of the model without drafts.
std::set<std::string> names(const Family& family, Engine engine, const Family* without = nullptr) {
  std::set<std::string> all;
  for (const Parameter& parameter : family.parameters(layout_of(engine), {})) all.insert(parameter.name);
  if (without != nullptr) {
    for (const Parameter& parameter : without->parameters(layout_of(engine), {})) all.erase(parameter.name);
  }
  return all;
}

using Names = std::set<std::string>;

/// With one text in front of all.
Names below(const std::string& prefix, const Names& names) {
  Names all;
  for (const std::string& name : names) all.insert(prefix + name);
  return all;
}

Names joined(Names a, const Names& b) {
  a.insert(b.begin(), b.end());
  return a;
}

const Names kGlmJoint{"enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight"};

Names glm_body(const std::string& experts) {
  return {"input_layernorm.weight",
          "self_attn.qkv_proj.weight",
          "self_attn.qkv_proj.bias",
          "self_attn.o_proj.weight",
          "self_attn.q_norm.weight",
          "self_attn.k_norm.weight",
          "post_attention_layernorm.weight",
          "mlp.gate.weight",
          "mlp.gate.e_score_correction_bias",
          experts + "w13_weight",
          experts + "w2_weight",
          "mlp.shared_experts.gate_up_proj.weight",
          "mlp.shared_experts.down_proj.weight"};
}

TEST(Drafts, AreOfTheCatalogWhereTheyAreIncluded) {
  const auto without = family_of(config_of("glm4-moe"), Drafts::kLeftOut);
  const auto with = family_of(config_of("glm4-moe"), Drafts::kIncluded);
  EXPECT_FALSE(without->sends_drafts());
  EXPECT_TRUE(with->sends_drafts());
  const Catalog& catalog = with->catalog();
  // First the model, as ever.
  for (std::uint32_t number = 0; number < without->catalog().size(); ++number) {
    EXPECT_EQ(catalog[number].name, without->catalog()[number].name);
  }
  EXPECT_EQ(catalog[catalog.at("model.layers.3.eh_proj.weight")].shape, (Shape{80, 160}));
  EXPECT_EQ(catalog[catalog.at("model.layers.3.shared_head.norm.weight")].shape, (Shape{80}));
  EXPECT_EQ(catalog[catalog.at("model.layers.3.mlp.experts.1.up_proj.weight")].layer, 3);
  EXPECT_FALSE(catalog.find("model.layers.3.embed_tokens.weight"));
  EXPECT_FALSE(catalog.find("model.layers.4.eh_proj.weight"));
  // What a draft repeats is not read, and what it has not is no part of it.
  EXPECT_TRUE(with->may_ignore("model.layers.3.embed_tokens.weight"));
  EXPECT_TRUE(with->may_ignore("model.layers.3.shared_head.head.weight"));
  EXPECT_FALSE(with->may_ignore("model.layers.3.mlp.extra.weight"));
  EXPECT_FALSE(with->ignored_beside("model.layers.3.embed_tokens.weight"));
  const auto form =
      with->other_stored_form(catalog[catalog.at("model.layers.3.mlp.experts.1.up_proj.weight")]);
  ASSERT_TRUE(form);
  EXPECT_EQ(form->name, "model.layers.3.mlp.experts.gate_up_proj");
}

TEST(Drafts, WhatADraftRepeatsOfTheModelIsACopy) {
  const auto glm = family_of(config_of("glm4-moe"), Drafts::kIncluded);
  EXPECT_EQ(glm->copy_of("model.layers.3.embed_tokens.weight"), "model.embed_tokens.weight");
  EXPECT_EQ(glm->copy_of("model.layers.3.shared_head.head.weight"), "lm_head.weight");
  EXPECT_EQ(glm->copy_of("model.layers.3.shared_head.norm.weight"), std::nullopt);
  EXPECT_EQ(glm->copy_of("model.embed_tokens.weight"), std::nullopt);
  // Where layers of drafts are not sent, nothing of them is looked at.
  const auto without = family_of(config_of("glm4-moe"), Drafts::kLeftOut);
  EXPECT_EQ(without->copy_of("model.layers.3.embed_tokens.weight"), std::nullopt);
  // A head that is tied has no tensor of its own.
  const auto tied = family_of(config_of("glm4-moe", {{"tie_word_embeddings", true}}), Drafts::kAlone);
  EXPECT_EQ(tied->copy_of("model.layers.3.shared_head.head.weight"), "model.embed_tokens.weight");
}

TEST(Drafts, WhatEnginesDoNotReadIsAcceptedInThemToo) {
  const json fp8{
      {"quantization_config", {{"quant_method", "fp8"}, {"fmt", "e4m3"}, {"weight_block_size", {128, 128}}}}};
  for (const Drafts drafts : {Drafts::kIncluded, Drafts::kAlone}) {
    const auto glm = family_of(config_of("glm4-moe"), drafts);
    EXPECT_TRUE(glm->may_ignore("model.layers.3.self_attn.rotary_emb.inv_freq"));
    EXPECT_TRUE(glm->may_ignore("model.layers.3.self_attn.k_proj.k_scale"));
    EXPECT_FALSE(glm->may_ignore("model.layers.3.mlp.experts.0.up_proj.input_scale"));
    EXPECT_TRUE(family_of(config_of("glm4-moe", fp8), drafts)
                    ->may_ignore("model.layers.3.mlp.experts.0.up_proj.input_scale"));
  }
}

TEST(Drafts, OfAConfigThatHasNone) {
  for (const auto& [model, field] :
       {std::pair("qwen3.5", "mtp_num_hidden_layers"), {"qwen3-next", "num_nextn_predict_layers"}}) {
    const auto plain = family_of(config_of(model), Drafts::kLeftOut);
    for (const json& none : {json(0), json("any")}) {
      const auto same = family_of(config_of(model, {{field, none}}), Drafts::kLeftOut);
      EXPECT_EQ(same->catalog().size(), plain->catalog().size());
    }
    expect_has(message_of<UsageError>([&] {
                 family_of(config_of(model, {{field, 0}}), Drafts::kIncluded);
               }),
               {"--mtp include", "no draft layers"});
  }
}

TEST(Drafts, AsTheEnginesDraftModelsCallThem) {
  const auto glm = family_of(config_of("glm4-moe"), Drafts::kAlone);
  const Names shared{"model.embed_tokens.weight"};
  EXPECT_EQ(names(*glm, Engine::kVllm),
            joined(shared, below("model.layers.3.",
                                 joined(joined(kGlmJoint, {"shared_head.head.weight"}),
                                        below("mtp_block.", glm_body("mlp.experts.routed_experts."))))));
  EXPECT_EQ(names(*glm, Engine::kSglang),
            joined(joined(shared, {"lm_head.weight"}),
                   below("model.", joined(kGlmJoint, below("decoder.", glm_body("mlp.experts."))))));
  // Beside the model they keep the numbers of their layers.
  const auto without = family_of(config_of("glm4-moe"), Drafts::kLeftOut);
  const auto with = family_of(config_of("glm4-moe"), Drafts::kIncluded);
  EXPECT_EQ(names(*with, Engine::kSglang, without.get()),
            below("model.layers.3.", joined(kGlmJoint, glm_body("mlp.experts."))));
}

TEST(Drafts, OfQwensKindStandBelowTheirOwnName) {
  const json config = config_of("qwen3.5-moe");
  const auto without = family_of(config, Drafts::kLeftOut);
  const auto with = family_of(config, Drafts::kIncluded);
  const auto alone = family_of(config, Drafts::kAlone);
  const Names before{"fc.weight", "pre_fc_norm_embedding.weight", "pre_fc_norm_hidden.weight"};
  const Names body =
      below("layers.0.",
            {"input_layernorm.weight", "qkv_proj.weight", "o_proj.weight", "q_norm.weight", "k_norm.weight",
             "post_attention_layernorm.weight", "mlp.gate.weight", "mlp.experts.w13_weight",
             "mlp.experts.w2_weight", "mlp.shared_expert.gate_up_proj.weight",
             "mlp.shared_expert.down_proj.weight", "mlp.shared_expert_gate.weight"});
  const Names shared{"model.embed_tokens.weight", "lm_head.weight"};
  EXPECT_EQ(names(*with, Engine::kSglang, without.get()),
            below("mtp.", joined(joined(before, {"norm.weight"}), body)));
  EXPECT_EQ(names(*alone, Engine::kSglang),
            joined(joined(shared, before), below("model.", joined({"norm.weight"}, body))));
  const Names vllm = names(*alone, Engine::kVllm);
  EXPECT_TRUE(vllm.contains("model.fc.weight"));
  EXPECT_TRUE(vllm.contains("model.norm.weight"));
  EXPECT_TRUE(vllm.contains("model.layers.0.self_attn.qkv_proj.weight"));
  EXPECT_TRUE(vllm.contains("model.layers.0.mlp.experts.routed_experts.w13_weight"));
  EXPECT_EQ(vllm.size(), names(*alone, Engine::kSglang).size());
  // vLLM's ranks have rows of the projection each, SGLang's all of it.
  const auto rows = [&](Engine engine) {
    const auto parameters = alone->parameters(layout_of(engine, 2), {0, 0, 1, 1, 0, 1});
    const auto fc =
        std::ranges::find_if(parameters, [](const auto& p) { return p.name.ends_with("fc.weight"); });
    return fc->parts.at(0).box;
  };
  EXPECT_EQ(rows(Engine::kVllm), (Box{40, 40, 0, 160}));
  EXPECT_EQ(rows(Engine::kSglang), (Box{0, 80, 0, 160}));
  // Of a whole checkpoint a draft alone reads its own tensors.
  EXPECT_TRUE(alone->may_ignore("model.layers.0.mlp.gate.weight"));
  EXPECT_FALSE(alone->may_ignore("mtp.extra.weight"));
  EXPECT_FALSE(with->may_ignore("mtp.extra.weight"));
  // A head that is tied to the embedding is the draft's embedding, too.
  EXPECT_FALSE(
      names(*family_of(config_of("qwen3.5"), Drafts::kAlone), Engine::kVllm).contains("lm_head.weight"));
}

TEST(Drafts, OfSeveralLayers) {
  const auto two = family_of(config_of("deepseek-v3", {{"num_nextn_predict_layers", 2}}), Drafts::kAlone);
  const Names all = names(*two, Engine::kVllm);
  for (const char* name :
       {"model.layers.3.eh_proj.weight", "model.layers.4.eh_proj.weight",
        "model.layers.4.shared_head.head.weight", "model.layers.4.mtp_block.self_attn.kv_b_proj.weight"}) {
    EXPECT_TRUE(all.contains(name)) << name;
  }
  expect_has(message_of<UsageError>([&] { two->parameters(layout_of(Engine::kSglang), {}); }),
             {"--target draft", "one layer", "describes 2", "--mtp include"});
  // Qwen's share what joins them to the model.
  const auto qwen = family_of(
      config_of("qwen3.5-moe", {{"text_config", nullptr}, {"mtp_num_hidden_layers", 2}}), Drafts::kAlone);
  EXPECT_TRUE(qwen->catalog().find("mtp.layers.1.self_attn.q_proj.weight"));
  EXPECT_TRUE(names(*qwen, Engine::kVllm).contains("model.layers.1.self_attn.qkv_proj.weight"));
}

TEST(Drafts, OfSparseAttentionHaveIndexersOfTheirOwn) {
  const auto glm5 = family_of(config_of("glm-moe-dsa", {{"num_nextn_predict_layers", 1}}), Drafts::kAlone);
  EXPECT_TRUE(glm5->catalog().find("model.layers.4.self_attn.indexer.wk.weight"));
  EXPECT_TRUE(
      names(*glm5, Engine::kSglang).contains("model.decoder.self_attn.indexer.wk_weights_proj.weight"));
}

struct Whole {
  const char* model;
  json changes;
  Engine engine;
};

class SentWhole : public ::testing::TestWithParam<std::size_t> {
 protected:
  static const std::vector<Whole>& cases() {
    const json one{{"num_nextn_predict_layers", 1}};
    static const std::vector<Whole> all{
        {"deepseek-v3", one, Engine::kVllm},           {"deepseek-v32", one, Engine::kVllm},
        {"glm-moe-dsa", one, Engine::kSglang},         {"glm4-moe", one, Engine::kVllm},
        {"glm4-moe-lite", one, Engine::kSglang},       {"qwen3-next", json::object(), Engine::kVllm},
        {"qwen3.5", json::object(), Engine::kVllm},    {"qwen3.5-moe", json::object(), Engine::kSglang},
        {"qwen3.5-vl", json::object(), Engine::kVllm}, {"glm4-moe", one, Engine::kHf}};
    return all;
  }
};

INSTANTIATE_TEST_SUITE_P(Families, SentWhole, ::testing::Range<std::size_t>(0, 10));

TEST_P(SentWhole, EveryByteArrivesOnce) {
  const Whole& c = cases().at(GetParam());
  for (const Drafts drafts : {Drafts::kIncluded, Drafts::kAlone}) {
    const auto family = family_of(config_of(c.model, c.changes), drafts);
    naive::Weights weights;
    std::uint8_t next = 1;
    for (const Tensor& tensor : family->catalog().tensors()) {
      std::vector<std::byte>& bytes = weights[tensor.name];
      bytes.resize(static_cast<std::size_t>(tensor.bytes()));
      for (std::byte& byte : bytes)
        byte = static_cast<std::byte>(next = static_cast<std::uint8_t>(next * 5 + 3));
    }
    Topology topology;
    topology.trainers = 2;
    topology.engine = layout_of(c.engine, c.engine == Engine::kHf ? 1 : 2);
    Limits limits;
    limits.bucket_bytes = 64 << 10;
    const Plan plan = make_plan(*family, topology, limits);
    // All digests, in the parameters of every rank.
    static_cast<void>(emulate_update(plan, *family, weights));
  }
}

TEST(Drafts, AreOnTheLastStage) {
  const auto with = family_of(config_of("glm4-moe"), Drafts::kIncluded);
  EngineLayout layout = layout_of(Engine::kVllm);
  layout.pp = 3;
  const auto has_draft = [&](std::int64_t pp) {
    const auto parameters = with->parameters(layout, {0, pp});
    return std::ranges::any_of(parameters,
                               [](const auto& p) { return p.name == "model.layers.3.eh_proj.weight"; });
  };
  EXPECT_FALSE(has_draft(0));
  EXPECT_FALSE(has_draft(1));
  EXPECT_TRUE(has_draft(2));
  const auto alone = family_of(config_of("glm4-moe"), Drafts::kAlone);
  expect_has(message_of<UsageError>([&] { alone->parameters(layout, {}); }), {"pp=3", "no stages", "pp=1"});
}

TEST(Drafts, WhatIsRefused) {
  expect_has(message_of<UsageError>([] { family_of(config_of("llama"), Drafts::kIncluded); }),
             {"--mtp include", "x/config.json", "no draft layers"});
  expect_has(message_of<UsageError>([] {
               family_of(config_of("glm4-moe", {{"num_nextn_predict_layers", 0}}), Drafts::kAlone);
             }),
             {"--target draft", "no draft layers"});
  expect_has(message_of([] {
               family_of(config_of("glm4-moe", {{"num_nextn_predict_layers", 100'000}}), Drafts::kAlone);
             }),
             {"100000 draft layers", "1000"});
  const auto with = family_of(config_of("glm4-moe"), Drafts::kIncluded);
  expect_has(message_of<UsageError>([&] { with->trainer_dense({}, 0, 0); }), {"draft layers", "--mtp"});
  EngineLayout fp8 = layout_of(Engine::kVllm);
  fp8.quantizer = parse_quantizer("fp8-channel");
  const auto qwen = family_of(config_of("qwen3.5-moe"), Drafts::kAlone);
  expect_has(message_of<UsageError>([&] { qwen->parameters(fp8, {}); }),
             {"--quantize fp8-channel", "mtp.fc.weight"});
}

}  // namespace

}  // namespace weightcast
