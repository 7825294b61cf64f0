#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "model/engine.hpp"
#include "model_configs.hpp"
#include "naive_model.hpp"
#include "plan/topology.hpp"

namespace weightcast {

namespace {

std::string usage_error_of(const std::string& text, const std::string& moe_layout = "triton") {
  try {
    parse_engine_layout(text, moe_layout);
  } catch (const UsageError& error) {
    return error.what();
  }
  ADD_FAILURE() << "'" << text << "' was read";
  return "";
}

TEST(EngineLayouts, AreRead) {
  const EngineLayout layout = parse_engine_layout("replicas=3,tp=8,pp=2,ep=4", "cutlass");
  EXPECT_EQ(layout.tp, 8);
  EXPECT_EQ(layout.ep, 4);
  EXPECT_EQ(layout.pp, 2);
  EXPECT_EQ(layout.replicas, 3);
  EXPECT_EQ(layout.moe_layout, "cutlass");
  EXPECT_EQ(layout.expert_tp(), 2);
  EXPECT_EQ(layout.replica_ranks(), 16);
  EXPECT_EQ(layout.ranks(), 48);
}

TEST(EngineLayouts, WhatIsAbsentIsOne) {
  const EngineLayout layout = parse_engine_layout("tp=2", "triton");
  EXPECT_EQ(layout.ep, 1);
  EXPECT_EQ(layout.pp, 1);
  EXPECT_EQ(layout.replicas, 1);
}

TEST(EngineLayouts, ThePieceThatIsWrongIsNamed) {
  for (const std::string piece : {"tp=0", "tp=-2", "tp", "tp=", "tp=two", "tp=2x", "dp=2", "=2", "tp =2",
                                  "tp=+2", "tp=1048577", "tp=99999999999999999999", "", "ep=1", "ep=2"}) {
    EXPECT_NE(usage_error_of("ep=1," + piece).find("'" + piece + "'"), std::string::npos) << piece;
  }
  EXPECT_NE(usage_error_of("tp=4,,ep=2").find("''"), std::string::npos);
  EXPECT_NE(usage_error_of("").find("''"), std::string::npos);
}

TEST(EngineLayouts, ExpertGroupsDivideTheTensorParallelGroup) {
  const std::string message = usage_error_of("tp=4,ep=3");
  EXPECT_NE(message.find("ep=3"), std::string::npos) << message;
  EXPECT_NE(message.find("tp=4"), std::string::npos) << message;
}

TEST(EngineLayouts, DataParallelAttention) {
  const EngineLayout layout = parse_engine_layout("ep=8,attn_dp=4,pp=3,attn_tp=2,replicas=2", "triton");
  EXPECT_EQ(layout.tp, 8);
  EXPECT_EQ(layout.attention_dp, 4);
  EXPECT_EQ(layout.attention_tp(), 2);
  EXPECT_EQ(layout.expert_tp(), 1);
  EXPECT_EQ(layout.replica_ranks(), 24);
  EXPECT_EQ(layout.ranks(), 48);
  EXPECT_EQ(layout.cut_text(), "attn_tp 2 × attn_dp 4, ep 8");
  EXPECT_EQ(parse_engine_layout("attn_dp=8", "triton").attention_tp(), 1);
  // Attention that is there once is a plain layout.
  const EngineLayout plain = parse_engine_layout("attn_tp=4,ep=2", "triton");
  EXPECT_EQ(plain.attention_dp, 1);
  EXPECT_EQ(plain.cut_text(), "tp 4, ep 2");
  expect_has(usage_error_of("attn_tp=2,attn_dp=3,ep=4"), {"ep=4", "does not divide attn_tp·attn_dp=6"});
  expect_has(usage_error_of("attn_tp=2,attn_dp=2,tp=4"), {"in place of tp", "leave tp out"});
  expect_has(usage_error_of("tp=4,attn_tp=4"), {"in place of tp", "leave tp out"});
  expect_has(usage_error_of("attn_tp=2,attn_tp=2"), {"'attn_tp=2'", "second time"});
  expect_has(usage_error_of("attn_tp=1048576,attn_dp=2"), {"more than 1048576 ranks"});
  expect_has(usage_error_of("attn_dp=0"), {"'attn_dp=0'"});
}

TEST(EngineLayouts, EachWholeAttentionIsOnNeighbouringRanks) {
  const EngineLayout layout = parse_engine_layout("attn_tp=2,attn_dp=3,ep=3,replicas=2", "triton");
  std::vector<std::array<std::int64_t, 5>> places;
  for (std::int64_t rank = 6; rank < 12; ++rank) {
    const EngineRank place = engine_rank(layout, rank);
    EXPECT_EQ(place.replica, 1);
    EXPECT_EQ(place.pp, 0);
    places.push_back({place.tp, place.attention_dp, place.attention_tp, place.ep, place.expert_tp});
  }
  EXPECT_EQ(places, (std::vector<std::array<std::int64_t, 5>>{{0, 0, 0, 0, 0},
                                                              {1, 0, 1, 0, 1},
                                                              {2, 1, 0, 1, 0},
                                                              {3, 1, 1, 1, 1},
                                                              {4, 2, 0, 2, 0},
                                                              {5, 2, 1, 2, 1}}));
  EXPECT_EQ(place_text(layout, engine_rank(layout, 9)), "replica 1 pp 0 attn_dp 1 attn_tp 1 ep 1");
}

TEST(EngineLayouts, SizesOfDataParallelAttentionThatDoNotDivideAreNamed) {
  naive::Model model;
  model.moe = true;
  model.heads = 4;
  model.kv_heads = 4;
  model.inner = 24;
  model.vocabulary = 64;
  model.experts = 12;
  model.expert_inner = 10;
  const auto family = model.family();
  const auto message = [&](const char* text, Engine engine) {
    EngineLayout layout = parse_engine_layout(text, "triton");
    layout.engine = engine;
    return message_of<UsageError>([&] { family->parameters(layout, {}); });
  };
  expect_has(message("attn_tp=8,attn_dp=3,ep=12", Engine::kVllm), {"attn_tp=8", "heads", "(4)"});
  expect_has(message("attn_tp=1,attn_dp=12,ep=12", Engine::kSglang),
             {"attn_tp·attn_dp=12", "the padded vocabulary of lm_head.weight", "(64)"});
  expect_has(message("attn_tp=1,attn_dp=4", Engine::kVllm), {"attn_tp·attn_dp/ep=4", "inner size", "(10)"});
  EngineLayout layout = parse_engine_layout("attn_tp=1,attn_dp=12,ep=12", "triton");
  layout.engine = Engine::kVllm;
  EXPECT_NO_THROW(family->parameters(layout, {}));
}

TEST(EngineLayouts, UnknownKernelLayout) {
  const std::string message = usage_error_of("tp=1", "marlin");
  EXPECT_NE(message.find("marlin"), std::string::npos) << message;
  EXPECT_NE(message.find("cutlass"), std::string::npos) << message;
}

TEST(EngineLayouts, RanksAreReplicaMajorThenStageThenTensorParallel) {
  EngineLayout layout;
  layout.tp = 4;
  layout.pp = 3;
  layout.replicas = 2;
  std::int64_t rank = 0;
  for (std::int64_t replica = 0; replica < 2; ++replica) {
    for (std::int64_t pp = 0; pp < 3; ++pp) {
      for (std::int64_t tp = 0; tp < 4; ++tp, ++rank) {
        const EngineRank place = engine_rank(layout, rank);
        EXPECT_EQ(place.replica, replica);
        EXPECT_EQ(place.pp, pp);
        EXPECT_EQ(place.tp, tp);
      }
    }
  }
}

TEST(EngineLayouts, CanonicalParametersAreTheTensors) {
  for (const bool tied : {false, true}) {
    naive::Model model;
    model.moe = true;
    model.tied = tied;
    model.mlp_only_layers = {0};
    model.bias = true;
    const auto family = model.family();
    EngineLayout layout;
    layout.engine = Engine::kHf;
    const std::vector<Parameter> parameters = family->parameters(layout, {});
    const auto& tensors = family->catalog().tensors();
    ASSERT_EQ(parameters.size(), tensors.size());
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      EXPECT_EQ(parameters[i].name, tensors[i].name);
      EXPECT_EQ(parameters[i].dtype, tensors[i].dtype);
      EXPECT_EQ(parameters[i].shape, tensors[i].shape);
      EXPECT_TRUE(parameters[i].padding.empty());
      ASSERT_EQ(parameters[i].parts.size(), 1);
      EXPECT_EQ(parameters[i].parts[0].tensor, i);
      EXPECT_EQ(parameters[i].parts[0].box, Box::whole(tensors[i].shape));
    }
  }
}

TEST(EngineLayouts, ASizeThatDoesNotDivideIsNamed) {
  naive::Model model;
  model.moe = true;
  model.layers = 4;
  model.heads = 6;
  model.kv_heads = 3;
  model.head_dim = 8;
  model.vocabulary = 768;
  model.experts = 6;
  model.expert_inner = 9;
  model.mlp_only_layers = {0};
  model.inner = 24;
  const auto message = [&](const std::string& text) -> std::string {
    const auto family = model.family();
    try {
      family->parameters(parse_engine_layout(text, "triton"), {});
    } catch (const UsageError& error) {
      return error.what();
    }
    return "no error";
  };
  const auto expect = [&](const std::string& text, std::initializer_list<const char*> words) {
    const std::string said = message(text);
    for (const char* word : words) EXPECT_NE(said.find(word), std::string::npos) << text << ": " << said;
  };
  EXPECT_EQ(message("tp=3,ep=3"), "no error");
  expect("tp=4", {"tp=4", "attention heads", "6"});
  expect("tp=2", {"tp=2", "kv heads", "3"});
  expect("pp=3", {"pp=3", "layers", "4"});
  model.kv_heads = 1;
  expect("tp=6,ep=3", {"tp/ep=2", "inner size", "experts", "9"});
  model.experts = 5;
  expect("tp=3,ep=3", {"ep=3", "the experts", "5"});
  model.inner = 25;
  expect("tp=3", {"tp=3", "gate_proj", "25"});
  model.kv_heads = 2;
  expect("tp=3", {"tp=3", "2 kv heads"});
  model.vocabulary = 64;
  expect("tp=3", {"tp=3", "vocabulary", "64"});
}

TEST(EngineLayouts, StagesMayBeUneven) {
  EngineLayout layout;
  layout.pp = 3;
  layout.stage_layers = {1, 0, 3};
  const auto stage = [&](std::int64_t pp) {
    const EngineStage found = engine_stage(layout, pp, 4, "model");
    return std::pair(found.first, found.layers);
  };
  using Pair = std::pair<std::int64_t, std::int64_t>;
  EXPECT_EQ(stage(0), Pair(0, 1));
  EXPECT_EQ(stage(1), Pair(1, 0));
  EXPECT_EQ(stage(2), Pair(1, 3));
  const auto refused = [&](std::vector<std::int64_t> layers) -> std::string {
    layout.stage_layers = std::move(layers);
    try {
      stage(0);
    } catch (const UsageError& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(refused({1, 3}), "--inference-stage-layers 1,3: 2 entries for pp=3 stages; give one for each");
  EXPECT_EQ(refused({1, 1, 3}),
            "--inference-stage-layers 1,1,3: the stages add up to 5 layers but model has 4");
  EXPECT_NE(refused({}).find("--inference-stage-layers"), std::string::npos);
}

TEST(ExpertPlacements, SlotsOfARank) {
  using Experts = std::vector<std::int64_t>;
  const ExpertPlacement contiguous;
  EXPECT_EQ(contiguous.experts_on(7, 2, 1, 6, "o"), (Experts{3, 4, 5}));
  EXPECT_EQ(contiguous.fingerprint(), "contiguous");
  ExpertPlacement placement{3, {{2, 0, 1, 0}, {0, 1, 2, 2}}};
  EXPECT_EQ(placement.experts_on(0, 2, 0, 3, "o"), (Experts{2, 0}));
  EXPECT_EQ(placement.experts_on(1, 2, 1, 3, "o"), (Experts{2, 2}));
  const std::string fingerprint = placement.fingerprint();
  placement.experts_of_slots[1] = {0, 1, 1, 2};
  EXPECT_NE(placement.fingerprint(), fingerprint);
  const auto refused = [&](std::int64_t layer, std::int64_t ep, std::int64_t experts) -> std::string {
    try {
      placement.experts_on(layer, ep, 0, experts, "--o");
    } catch (const UsageError& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(refused(0, 3, 3), "--o: ep=3 does not divide the expert slots of layer 0 (4); choose a divisor");
  EXPECT_EQ(refused(0, 2, 2), "--o: a slot of layer 0 holds expert 2, but the model has 2");
  EXPECT_EQ(refused(1, 2, 4), "--o: no slot of layer 1 holds expert 3");
  EXPECT_EQ(refused(5, 2, 3), "--o: no slot of layer 5 holds expert 0");
}

TEST(Topologies, TrainersComeFirst) {
  Topology topology;
  topology.trainers = 3;
  topology.engine.tp = 2;
  topology.engine.replicas = 2;
  EXPECT_EQ(topology.ranks(), 7);
  EXPECT_EQ(topology.trainer(2), 2);
  EXPECT_EQ(topology.trainer(3), std::nullopt);
  EXPECT_EQ(topology.inference_rank(2), std::nullopt);
  EXPECT_EQ(topology.inference_rank(3), 0);
  EXPECT_EQ(topology.world_rank_of_inference(3), 6);
  EXPECT_NO_THROW(require_world_size(topology, 7));
}

TEST(Topologies, ColocatedRanksAreBoth) {
  Topology topology;
  topology.engine.tp = 4;
  topology.trainers = 4;
  topology.colocate = true;
  EXPECT_EQ(topology.ranks(), 4);
  EXPECT_EQ(topology.trainer(3), 3);
  EXPECT_EQ(topology.inference_rank(3), 3);
  EXPECT_EQ(topology.world_rank_of_inference(3), 3);
}

TEST(Topologies, AWorldOfAnotherSizeIsRefused) {
  Topology topology;
  topology.trainers = 2;
  topology.engine.tp = 2;
  for (const std::int64_t size : {3, 5}) {
    try {
      require_world_size(topology, size);
      ADD_FAILURE() << size;
    } catch (const UsageError& error) {
      const std::string message = error.what();
      EXPECT_NE(message.find(size < 4 ? "too few" : "too many"), std::string::npos) << message;
      EXPECT_NE(message.find("need 4 ranks"), std::string::npos) << message;
      EXPECT_NE(message.find("started " + std::to_string(size)), std::string::npos) << message;
    }
  }
}

}  // namespace

}  // namespace weightcast
