// Updates of some of a model's tensors: what is sent, what stays to the byte, and what cannot be divided.

#include "model/chosen_family.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/glob.hpp"
#include "emulated_update.hpp"
#include "model_configs.hpp"
#include "naive_model.hpp"
#include "plan/proof.hpp"
#include "plan_cases.hpp"

namespace weightcast {

namespace {

using namespace plan_cases;

bool is_chosen(const std::string& name, const std::vector<std::string>& globs) {
  return std::ranges::any_of(globs, [&](const std::string& glob) { return fits_glob(glob, name); });
}

std::unique_ptr<Family> chosen_family(std::unique_ptr<Family> family, const std::vector<std::string>& globs) {
  std::vector<bool> chosen;
  for (const Tensor& tensor : family->catalog().tensors()) chosen.push_back(is_chosen(tensor.name, globs));
  return make_chosen_family(std::move(family), chosen,
                            [globs](std::string_view name) { return !is_chosen(std::string(name), globs); });
}

struct Case {
  const char* name;
  naive::Model model;
  Topology topology;
  std::vector<std::string> chosen;
  Limits limits = capped(64 << 10);

  friend std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.name; }
};

naive::Model four_experts() {
  naive::Model model = quantizable(true);
  model.experts = 4;
  return model;
}

Topology laid_out(const char* engine, const char* moe_layout, const char* quantizer = nullptr) {
  Topology topology = topology_of(2, engine);
  topology.engine.moe_layout = moe_layout;
  if (quantizer != nullptr) topology.engine.quantizer = parse_quantizer(quantizer);
  return topology;
}

Limits at_destination() {
  Limits limits = capped(100'000);
  limits.quantize_at = QuantizeAt::kDestination;
  return limits;
}

std::vector<Case> cases() {
  const naive::Model moe = small_moe();
  const naive::Model values = four_experts();
  naive::Model tied = moe;
  tied.moe = false;
  tied.tied = true;
  return {
      {"OneExpert", moe, topology_of(2, "tp=2,ep=2"), {"*.experts.3.*"}},
      {"OnlyGates", moe, topology_of(1, "tp=4,ep=2"), {"*.gate_proj.weight"}},
      {"OnlyUpOfOneExpert", moe, topology_of(1, "tp=2"), {"*.experts.[05].up_proj.weight"}},
      {"OnlyQueries", moe, topology_of(2, "tp=4"), {"*.q_proj.weight", "model.norm.weight"}},
      {"OneLayerOfTwoStages", moe, topology_of(2, "tp=2,pp=2"), {"model.layers.1.*"}},
      {"AllButExperts", moe, topology_of(3, "tp=2,replicas=2"), {"model.*.self_attn.*", "*norm*", "*embed*"}},
      {"TheEmbeddingThatIsTheHead", tied, topology_of(1, "tp=2,pp=2"), {"model.embed_tokens.weight"}},
      {"Colocated", moe, topology_of(0, "tp=2,ep=2", true), {"*.experts.?.down_proj.weight"}},
      {"Transposed", moe, laid_out("tp=2", "triton-kernels"), {"*.experts.1.gate_proj.weight"}},
      {"UpFirst", moe, laid_out("tp=2,ep=2", "cutlass"), {"*.experts.[2-5].gate_proj.weight"}},
      {"ShuffledBlocks", values, laid_out("tp=2", "trtllm"), {"*.experts.2.up_proj.weight"}},
      {"BlocksOfRows", moe, laid_out("tp=2", "vllm-cpu"), {"*.experts.*.up_proj.weight"}},
      {"CodesOfBlocks",
       values,
       laid_out("tp=2", "triton", "fp8-block"),
       {"*.up_proj.weight", "*.q_proj.weight"}},
      {"CodesMadeOnArrival",
       values,
       laid_out("tp=2,ep=2", "cutlass", "fp8-block"),
       {"*.experts.1.gate_proj.weight"},
       at_destination()},
      {"CodesOfRows", values, laid_out("tp=2", "triton", "fp8-channel"), {"*.k_proj.*", "*.experts.0.*"}},
      {"OneScaleOfTensors", values, laid_out("tp=2", "triton", "fp8-tensor"), {"*.experts.[13].*"}},
      {"OneScaleOfTensorsAtTheDestination",
       values,
       laid_out("tp=2", "triton", "fp8-tensor"),
       {"*.experts.2.*"},
       at_destination()},
      {"FactorsBesideScales",
       values,
       laid_out("tp=1", "trtllm", "nvfp4"),
       {"*.experts.1.*", "*.experts.3.*"}},
      {"ScalesInTiles", values, laid_out("tp=1", "cutlass", "nvfp4"), {"*.self_attn.[qkv]_proj.weight"}},
      {"ScalesOfShuffledRows", values, laid_out("tp=1", "trtllm", "mxfp8"), {"*.experts.0.gate_proj.weight"}},
  };
}

class Partial : public ::testing::TestWithParam<Case> {
 protected:
  const Case& c() const { return GetParam(); }
  std::unique_ptr<Family> family() const { return chosen_family(c().model.family(), c().chosen); }

  naive::Quantized quantized(const naive::Weights& weights) const {
    const auto& quantizer = c().topology.engine.quantizer;
    return quantizer ? naive::quantize(c().model, *quantizer, weights) : naive::Quantized();
  }

  /// What the trainers have of what is sent.
  naive::Quantized chosen_of(naive::Quantized quantized) const {
    std::erase_if(quantized, [&](const auto& entry) { return !is_chosen(entry.first, c().chosen); });
    return quantized;
  }

  EngineRank place(std::size_t world_rank) const {
    const auto rank = c().topology.inference_rank(static_cast<std::int64_t>(world_rank));
    return engine_rank(c().topology.engine, rank.value());
  }
};

std::string test_name(const ::testing::TestParamInfo<Case>& one) {
  return one.param.name;
}

INSTANTIATE_TEST_SUITE_P(All, Partial, ::testing::ValuesIn(cases()), test_name);

TEST_P(Partial, WhatIsNotSentStaysToTheByte) {
  const naive::Weights before = naive::random_values(c().model, 1);
  const naive::Weights after = naive::random_values(c().model, 2);
  naive::Weights mixed = before;
  for (auto& [name, bytes] : mixed) {
    if (is_chosen(name, c().chosen)) bytes = after.at(name);
  }
  const naive::Quantized quantized_before = quantized(before);
  const naive::Quantized quantized_mixed = quantized(mixed);
  const auto partial = family();
  const Plan plan = make_plan(*partial, c().topology, c().limits);
  EmulatedUpdate update(plan, *partial);
  std::size_t ranks_written = 0;
  for (std::size_t r = 0; r < update.ranks().size(); ++r) {
    EmulatedRank& rank = update.ranks()[r];
    if (!c().topology.inference_rank(static_cast<std::int64_t>(r))) continue;
    for (const naive::Parameter& old :
         naive::parameters(c().model, c().topology.engine, place(r), before, quantized_before)) {
      for (std::size_t p = 0; p < rank.parameters.size(); ++p) {
        if (rank.rank_plan.parameters[p].name != old.name) continue;
        ASSERT_EQ(rank.parameters[p].size(), old.bytes.size()) << old.name;
        std::copy(old.bytes.begin(), old.bytes.end(), rank.parameters[p].begin());
      }
    }
    ranks_written += rank.parameters.empty() ? 0 : 1;
  }
  EXPECT_GT(ranks_written, 0u);
  update.begin(after, chosen_of(quantized_mixed));
  for (std::uint32_t number = 0; number < plan.buckets.size(); ++number) update.apply(number, 2);
  update.verify();
  // No parameter is listed that would be as it was, and of the others each byte is right.
  for (std::size_t r = 0; r < update.ranks().size(); ++r) {
    SCOPED_TRACE(r);
    if (!c().topology.inference_rank(static_cast<std::int64_t>(r))) continue;
    const EngineLayout& layout = c().topology.engine;
    const auto old = naive::parameters(c().model, layout, place(r), before, quantized_before);
    std::vector<naive::Parameter> changed =
        naive::parameters(c().model, layout, place(r), mixed, quantized_mixed);
    for (std::size_t i = changed.size(); i-- > 0;) {
      if (changed[i].bytes == old[i].bytes) changed.erase(changed.begin() + static_cast<std::ptrdiff_t>(i));
    }
    expect_parameters(update.ranks()[r], changed);
  }
}

TEST_P(Partial, OnlyWhatIsChosenTravels) {
  const auto whole = c().model.family();
  const auto partial = family();
  const Choice& choice = *partial->choice();
  std::int64_t tensors = 0;
  std::int64_t bytes = 0;
  for (const Tensor& tensor : whole->catalog().tensors()) {
    EXPECT_EQ(partial->catalog().find(tensor.name).has_value(), is_chosen(tensor.name, c().chosen))
        << tensor.name;
    if (!is_chosen(tensor.name, c().chosen)) continue;
    ++tensors;
    bytes += tensor.bytes();
  }
  EXPECT_EQ(choice.tensors, tensors);
  EXPECT_EQ(choice.bytes, bytes);
  EXPECT_EQ(choice.staying_tensors, static_cast<std::int64_t>(whole->catalog().size()) - tensors);
  EXPECT_EQ(choice.staying_bytes, whole->catalog().bytes() - bytes);
  const Plan of_all = make_plan(*whole, c().topology, c().limits);
  const Plan of_some = make_plan(*partial, c().topology, c().limits);
  EXPECT_NE(of_all.hash, of_some.hash);
  EXPECT_LE(of_some.wire_bytes(), of_all.wire_bytes());
}

TEST(ChosenFamily, TheProofKnowsWhatMustNotBeWritten) {
  const auto partial = chosen_family(small_moe().family(), {"*.experts.3.gate_proj.weight"});
  const Topology topology = topology_of(1, "tp=1");
  const Plan plan = make_plan(*partial, topology, Limits());
  const RankPlan rank_plan = make_rank_plan(plan, *partial, 1);
  ASSERT_EQ(rank_plan.parameters.size(), 2u);  // w13 of two layers
  const Parameter& w13 = rank_plan.parameters.front();
  ASSERT_EQ(w13.parts.size(), 1u);
  EXPECT_EQ(w13.untouched.size(), 15u);
  EXPECT_EQ(w13.written_bytes(), 64 * 96 * 2);
  // A write to what stays is found as one that is made twice.
  std::vector<Parameter> parameters = rank_plan.parameters;
  std::vector<Move> moves = rank_plan.moves;
  for (std::uint32_t number = 0; number < parameters.size(); ++number) {
    for (const Padding& stays : parameters[number].untouched) {
      moves.push_back({stays.offset, stays.bytes, 0, 1, stays.bytes, number, MoveOp::kZero});
    }
  }
  EXPECT_NO_THROW(prove_written_once(parameters, moves));
  moves.push_back({w13.untouched[4].offset, 2, 0, 1, 2, 0, MoveOp::kCopy});
  expect_has(message_of<InternalError>([&] { prove_written_once(parameters, moves); }),
             {"w13_weight", "exactly once"});
}

TEST(ChosenFamily, AChoiceIsKnownByWhatIsSent) {
  const auto id = [](const std::vector<std::string>& globs) {
    return chosen_family(small_moe().family(), globs)->choice()->id;
  };
  EXPECT_EQ(id({"*.experts.3.*"}), id({"model.layers.0.mlp.experts.3.*", "model.layers.1.mlp.experts.3.*"}));
  EXPECT_NE(id({"*.experts.3.*"}), id({"*.experts.4.*"}));
  EXPECT_EQ(id({"*.experts.3.*"}).size(), 16u);
  // All of it is a whole version.
  EXPECT_EQ(chosen_family(small_moe().family(), {"*"})->choice(), nullptr);
}

TEST(ChosenFamily, SourcesMayLackWhatStays) {
  const auto family = chosen_family(small_moe().family(), {"*.experts.3.*"});
  EXPECT_TRUE(family->may_ignore("model.embed_tokens.weight"));
  EXPECT_TRUE(family->stays("model.embed_tokens.weight"));
  EXPECT_TRUE(family->may_ignore("value_head.weight"));
  EXPECT_FALSE(family->stays("value_head.weight"));
  EXPECT_FALSE(family->may_ignore("model.layers.0.mlp.experts.3.up_proj.weight"));
  // A stack of experts is read when one of them is sent.
  EXPECT_FALSE(family->stays("model.layers.0.mlp.experts.gate_up_proj"));
  EXPECT_TRUE(
      chosen_family(small_moe().family(), {"*norm*"})->stays("model.layers.0.mlp.experts.gate_up_proj"));
  // An engine may have anything beside what is written.
  EXPECT_TRUE(family->is_engines_own("model.layers.0.self_attn.qkv_proj.weight"));
}

TEST(ChosenFamily, ATiedHeadGoesWithItsEmbedding) {
  naive::Model model;
  model.tied = true;
  const auto sent = chosen_family(model.family(), {"*embed*"});
  EXPECT_EQ(sent->copy_of("lm_head.weight"), "model.embed_tokens.weight");
  const auto stays = chosen_family(model.family(), {"*norm*"});
  EXPECT_EQ(stays->copy_of("lm_head.weight"), std::nullopt);
  EXPECT_TRUE(stays->may_ignore("lm_head.weight"));
}

TEST(ChosenFamily, WhatADraftRepeatsMayBeLeftOut) {
  ModelConfig config(text_of(std::string(WEIGHTCAST_TEST_DATA) + "/vllm/glm4-moe/config.json"),
                     "config.json");
  config.set_drafts(Drafts::kIncluded);
  const std::string head = "model.layers.3.shared_head.head.weight";
  const std::string embedding = "model.layers.3.embed_tokens.weight";
  auto whole = make_family(config);
  const std::vector<bool> all(whole->catalog().size(), true);
  const auto family =
      make_chosen_family(std::move(whole), all, [&](std::string_view name) { return name == head; });
  EXPECT_EQ(family->copy_of(head), std::nullopt);
  EXPECT_TRUE(family->may_ignore(head));
  EXPECT_EQ(family->copy_of(embedding), "model.embed_tokens.weight");
}

TEST(ChosenFamily, ARankThatHasPaddingAloneOfWhatIsSentWritesIt) {
  naive::Model model;
  model.vocabulary = 48;  // of 64 rows, of which the last of four ranks has none
  const auto whole = model.family();
  EngineLayout layout;
  layout.tp = 4;
  const auto last = [&](const Family& family) {
    std::map<std::string, Parameter> found;
    for (const Parameter& parameter : family.parameters(layout, engine_rank(layout, 3)))
      found.emplace(parameter.name, parameter);
    return found;
  };
  const Parameter embedding = last(*whole).at("model.embed_tokens.weight");
  ASSERT_TRUE(embedding.parts.empty());
  const auto sent = last(*chosen_family(model.family(), {"*embed*"}));
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent.at("model.embed_tokens.weight").padding.size(), embedding.padding.size());
  EXPECT_EQ(sent.at("model.embed_tokens.weight").written_bytes(), embedding.bytes());
  EXPECT_FALSE(last(*chosen_family(model.family(), {"*norm*"})).contains("model.embed_tokens.weight"));
}

TEST(ChosenFamily, TrainersMayHoldMore) {
  const auto family = chosen_family(small_moe().family(), {"*.q_proj.weight", "*.experts.3.*"});
  TrainerLayout layout;
  layout.ep = 2;
  layout.dp = 2;
  std::vector<std::string> stay;
  for (const TrainerTensor& tensor : family->trainer_dense(layout, 0, 0)) {
    if (tensor.stays) stay.push_back(tensor.held.name);
    if (tensor.held.name != "decoder.layers.0.self_attention.linear_qkv.weight") continue;
    // Of the fused tensor what is sent: queries of each of two groups.
    EXPECT_EQ(tensor.held.parts.size(), 2u);
    EXPECT_FALSE(tensor.stays);
  }
  EXPECT_TRUE(std::ranges::count(stay, "embedding.word_embeddings.weight") == 1);
  for (const TrainerTensor& tensor : family->trainer_experts(layout, 0, 0, 0)) {
    EXPECT_EQ(tensor.stays, !tensor.held.name.ends_with("weight3")) << tensor.held.name;
  }
}

TEST(ChosenFamily, WhatSharesAScaleIsNotDivided) {
  const auto refusal = [](const char* quantizer, const std::vector<std::string>& globs) {
    const auto family = chosen_family(four_experts().family(), globs);
    const Topology topology = laid_out("tp=1", "triton", quantizer);
    return message_of<UsageError>([&] { make_plan(*family, topology, Limits()); });
  };
  expect_has(refusal("fp8-tensor", {"*.experts.1.gate_proj.weight"}),
             {"--include, --exclude", "experts.1.gate_proj.weight is sent", "experts.1.up_proj.weight is not",
              "share one scale in fp8-tensor", "send both or neither"});
  expect_has(refusal("fp8-tensor", {"*.q_proj.weight"}), {"q_proj.weight is sent", "k_proj.weight is not"});
}

TEST(ChosenFamily, CodesAreNotSentWithoutTheirScales) {
  auto config = tiny_moe();
  config["quantization_config"] = {
      {"quant_method", "fp8"}, {"fmt", "e4m3"}, {"weight_block_size", {128, 128}}};
  expect_has(message_of<UsageError>([&] { chosen_family(family_of(config), {"*.q_proj.weight"}); }),
             {"q_proj.weight is sent", "q_proj.weight_scale_inv is not", "holds the scales"});
  expect_has(message_of<UsageError>([&] { chosen_family(family_of(config), {"*.q_proj.weight_scale_inv"}); }),
             {"q_proj.weight_scale_inv is sent", "q_proj.weight is not"});
  EXPECT_NO_THROW(chosen_family(family_of(config), {"*.q_proj.*"}));
}

TEST(ChosenFamily, CodesOfFourBitsAreNotSentWithoutTheirScales) {
  auto config =
      nlohmann::json::parse(text_of(std::string(WEIGHTCAST_TEST_DATA) + "/vllm/gpt-oss/config.json"));
  config["hidden_size"] = config["intermediate_size"] = 64;  // blocks of 32
  config["quantization_config"] = {{"quant_method", "mxfp4"}};
  const auto of = [&](const std::vector<std::string>& globs) {
    return chosen_family(family_of(config), globs);
  };
  expect_has(
      message_of<UsageError>([&] { of({"*_blocks"}); }),
      {"experts.gate_up_proj_blocks is sent", "experts.gate_up_proj_scales is not", "holds the scales"});
  expect_has(message_of<UsageError>([&] { of({"*.down_proj_scales"}); }),
             {"experts.down_proj_scales is sent", "experts.down_proj_blocks is not"});
  EXPECT_NO_THROW(of({"*_blocks", "*_scales"}));
}

TEST(Glob, FitsAllOfAName) {
  for (const auto& [glob, name] : std::vector<std::pair<const char*, const char*>>{
           {"*", ""},
           {"*", "a.b"},
           {"a.b", "a.b"},
           {"*.experts.*", "model.layers.0.mlp.experts.11.up_proj.weight"},
           {"model.layers.[0-3].*", "model.layers.2.mlp"},
           {"model.layers.?.*", "model.layers.2.mlp"},
           {"model.layers.[!0-3].*", "model.layers.7.mlp"},
           {"*a*a*b", "aaaaaab"},
           {"[]]x", "]x"},
           {"[a-]", "-"},
           {"**.norm", "a.norm"},
       }) {
    EXPECT_TRUE(fits_glob(glob, name)) << glob << " " << name;
  }
  for (const auto& [glob, name] : std::vector<std::pair<const char*, const char*>>{
           {"", "a"},
           {"a", ""},
           {"a.b", "axb"},
           {"experts", "a.experts"},
           {"*.experts", "a.experts.0"},
           {"model.layers.?.*", "model.layers.12.mlp"},
           {"model.layers.[0-3].*", "model.layers.12.mlp"},
           {"[!a]", "a"},
           {"*a*a*b", "aaaaaac"},
           {"a?", "a"},
       }) {
    EXPECT_FALSE(fits_glob(glob, name)) << glob << " " << name;
  }
  // Work grows with the product of the lengths, whatever the stars.
  EXPECT_FALSE(
      fits_glob(std::string(2000, '*') + "b" + std::string(2000, '*') + "c", std::string(4000, 'a')));
  std::string stars;
  for (int i = 0; i < 1000; ++i) stars += "a*";
  EXPECT_FALSE(fits_glob(stars + "b", std::string(4000, 'a')));
}

TEST(Glob, WhatIsWrongWithIt) {
  EXPECT_EQ(wrong_in_glob("*.experts.[0-9].*"), "");
  EXPECT_EQ(wrong_in_glob("[]a]"), "");
  EXPECT_EQ(wrong_in_glob(""), "is empty");
  EXPECT_EQ(wrong_in_glob("*.[0-9.*"), "has a [ without its ]");
  EXPECT_EQ(wrong_in_glob("[!]"), "has a [ without its ]");
  for (const char* glob : {"[^0]", "*.[^a-z].*", "[0][^1]", "[^]"}) {
    EXPECT_EQ(wrong_in_glob(glob), "has [^, and all but the characters of a set is [! here") << glob;
  }
  for (const char* glob : {"[z-a]", "[!z-a]*", "x[0-9b-a]"}) {
    EXPECT_EQ(wrong_in_glob(glob), "has a range that ends before it begins") << glob;
  }
  // A ^ that is not the first is a character, and ranges of one character have it.
  for (const char* glob : {"[!^]", "[0^]", "[a-a]", "[-a]", "[a-]", "[!-]"})
    EXPECT_EQ(wrong_in_glob(glob), "");
}

}  // namespace

}  // namespace weightcast
