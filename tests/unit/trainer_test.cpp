// How allocation strings are read, who stands where among trainers, and that each sends what it holds.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "core/error.hpp"
#include "model/allocation.hpp"
#include "model/megatron.hpp"
#include "plan_cases.hpp"

namespace weightcast {

namespace {

using namespace plan_cases;

TrainerLayout trainers(const std::string& text) {
  return parse_trainer_allocation("--trainer-alloc", text);
}

TEST(Allocations, BothSidesInEitherOrder) {
  for (const char* text : {"sglang:d4p1t4e2+megatron:(attn:d1p4t2c2|ffn:d1p4t2e2)",
                           "megatron:attn:d1p4t2c2|ffn:d1p4t2e2+vllm:t4e2d4"}) {
    SCOPED_TRACE(text);
    const Allocation both = parse_allocation("--alloc", text);
    EXPECT_EQ(both.inference.replicas, 4);
    EXPECT_EQ(both.inference.pp, 1);
    EXPECT_EQ(both.inference.tp, 4);
    EXPECT_EQ(both.inference.ep, 2);
    EXPECT_EQ(both.inference.option, "--alloc");
    EXPECT_EQ(both.trainers.ranks(), 16);
    EXPECT_EQ(both.trainers.to_string(), "megatron:(attn:d1p4t2c2|ffn:d1p4t2e2)");
    EXPECT_EQ(both.trainers.option, "--alloc");
  }
}

TEST(Allocations, WhatIsAbsentFollows) {
  EXPECT_EQ(trainers("megatron:d2p1t4e2").to_string(), "megatron:(attn:d2p1t4c1|ffn:d4p1t1e2)");
  EXPECT_EQ(trainers("megatron:(d2t2c2)").to_string(), "megatron:(attn:d2p1t2c2|ffn:d8p1t1e1)");
  EXPECT_EQ(trainers("megatron:attn:p2t4|ffn:e4").to_string(), "megatron:(attn:d1p2t4c1|ffn:d1p2t1e4)");
  EXPECT_EQ(trainers("megatron:(attn:d8p2)").to_string(), "megatron:(attn:d8p2t1c1|ffn:d8p2t1e1)");
  EXPECT_EQ(parse_inference_allocation("--inference-alloc", "vllm:p2").ranks(), 2);
}

TEST(Allocations, TheModelAsItIs) {
  const EngineLayout one = parse_inference_allocation("--inference-alloc", "hf");
  EXPECT_TRUE(one.canonical());
  EXPECT_EQ(one.ranks(), 1);
  const Allocation both = parse_allocation("--alloc", "hf:d3+megatron:t2");
  EXPECT_TRUE(both.inference.canonical());
  EXPECT_EQ(both.inference.replicas, 3);
  EXPECT_EQ(both.inference.ranks(), 3);
  EXPECT_FALSE(parse_inference_allocation("--inference-alloc", "vllm:d3").canonical());
}

TEST(Allocations, AttentionAndExpertsOverTheSameRanks) {
  const auto engine = [](const char* text) {
    const EngineLayout layout = parse_inference_allocation("--inference-alloc", text);
    return fmt::format("{} {}×{} {}", engine_name(layout.engine), layout.replicas, layout.pp,
                       layout.cut_text());
  };
  EXPECT_EQ(engine("vllm:(attn:d8t1|ffn:e8)"), "vllm 1×1 attn_tp 1 × attn_dp 8, ep 8");
  EXPECT_EQ(engine("vllm:attn:d8|ffn:e8"), "vllm 1×1 attn_tp 1 × attn_dp 8, ep 8");
  EXPECT_EQ(engine("sglang:(attn:d2t4p3|ffn:t2e4)"), "sglang 1×3 attn_tp 4 × attn_dp 2, ep 4");
  EXPECT_EQ(engine("sglang:(attn:d2t4p3|ffn:t8p3)"), "sglang 1×3 attn_tp 4 × attn_dp 2, ep 1");
  // As often as experts are there in full, so often is the engine.
  EXPECT_EQ(engine("vllm:(attn:d8t1|ffn:d2e4)"), "vllm 2×1 attn_tp 1 × attn_dp 4, ep 4");
  EXPECT_EQ(engine("vllm:(attn:d2t4|ffn:d2t2e2)"), "vllm 2×1 tp 4, ep 2");
  const Allocation both = parse_allocation("--alloc", "vllm:(attn:d4|ffn:e4)+megatron:(attn:t2|ffn:e2)");
  EXPECT_EQ(both.inference.attention_dp, 4);
  EXPECT_EQ(both.trainers.ranks(), 2);
}

TEST(Allocations, ThePlaceThatIsWrongIsNamed) {
  struct Case {
    std::string text;
    std::vector<std::string> words;
  };
  const std::vector<Case> cases{
      {"sglang:d4x2+megatron:d1", {"'x2+megatron:d1' (character 10)", "unknown letter", "d, p, t, e"}},
      {"sglang:d4c2+megatron:d1", {"'c2+", "unknown letter"}},
      {"sglang:d4+megatron:(attn:e2|ffn:e2)", {"'e2|", "attn takes d, p, t, c"}},
      {"sglang:d4+megatron:(attn:d2|ffn:c2)", {"'c2)'", "ffn takes d, p, t, e"}},
      {"hf:t2+megatron:d1", {"'t2+megatron:d1' (character 4)", "unknown letter; hf takes d"}},
      {"megatron:d1+hfx", {"'x'", "nothing more"}},
      {"sglang:d4d2+megatron:d1", {"'d2+", "second time"}},
      {"sglang:d0+megatron:d1", {"'d0+", "size"}},
      {"sglang:d+megatron:d1", {"'d+", "size"}},
      {"sglang:d-1+megatron:d1", {"'d-1", "size"}},
      {"sglang:d99999999999999999999+megatron:d1", {"'d999", "size"}},
      {"sglang:+megatron:d1", {"'+megatron", "sizes are missing"}},
      {"sglang:t4e3+megatron:d1", {"e=3", "t=4"}},
      {"sglang:d4+megatron:(attn:d1|ffn:d1", {"at its end", "not closed"}},
      {"sglang:d4+megatron:(attn:d1|d1)", {"'d1)'", "ffn:"}},
      {"sglang:d4+megatron:d1)", {"')'", "nothing more"}},
      {"sglang:d4", {"trainers' side", "missing"}},
      {"megatron:d4", {"inference side", "missing"}},
      {"sglang:d4+sglang:d4", {"'sglang:d4' (character 11)", "once"}},
      {"sglang:d4+fsdp:d4", {"'fsdp:d4'", "megatron"}},
      {"", {"at its end"}},
      {"vllm:(attn:d8t1|ffn:e4)+megatron:d1", {"8·1 is 8 ranks", "1·1·4 is 4", "both must be equal"}},
      {"vllm:(attn:d2t4|ffn:d4e2)+megatron:d1", {"ffn's d=4", "does not divide attn's d=2"}},
      {"vllm:(attn:d2p2|ffn:p4e2)+megatron:d1", {"p=2", "p=4", "same"}},
      {"vllm:(attn:d2e2|ffn:e2)+megatron:d1", {"'e2|", "attn takes d, p, t"}},
      {"vllm:(attn:d2|ffn:c2)+megatron:d1", {"'c2)", "ffn takes d, p, t, e"}},
      {"vllm:(attn:d2)+megatron:d1", {"')+megatron", "the experts are missing"}},
      {"vllm:(attn:d2|e2)+megatron:d1", {"'e2)", "ffn:"}},
      {"vllm:(attn:d2|ffn:e2+megatron:d1", {"'+megatron", "not closed"}},
      {"vllm:(d2t2)+megatron:d1", {"'d2t2)", "attn:"}},
      {"vllm:(attn:d1048576t2|ffn:e2)+megatron:d1", {"more than 1048576 ranks"}},
      {"sglang:d4+megatron:(attn:p2t2|ffn:p4)", {"p=2", "p=4", "same"}},
      {"sglang:d4+megatron:(attn:d2t2|ffn:d1e2)", {"4 ranks", "is 2", "equal"}},
      {"sglang:d4+megatron:(attn:d2t2|ffn:e3)", {"3", "does not divide", "4 ranks"}},
      {"sglang:d1048576p1048576+megatron:d1", {"more than 1048576 ranks"}},
  };
  for (const Case& c : cases) {
    try {
      parse_allocation("--alloc", c.text);
      ADD_FAILURE() << c.text << " was read";
    } catch (const UsageError& error) {
      const std::string line = error.what();
      EXPECT_TRUE(line.starts_with("--alloc '" + c.text + "'")) << line;
      for (const std::string& word : c.words) EXPECT_NE(line.find(word), std::string::npos) << line;
    }
  }
}

using Place = std::tuple<int, int, int, int, int, int, int>;  // pp, dp, cp, tp, edp, ep, etp

Place place_of(const TrainerLayout& layout, int rank) {
  const TrainerRank p = trainer_rank(layout, rank);
  const auto as_int = [](std::int64_t value) { return static_cast<int>(value); };
  return {as_int(p.pp), as_int(p.dp), as_int(p.cp), as_int(p.tp), as_int(p.edp), as_int(p.ep), as_int(p.etp)};
}

TEST(TrainerRanks, TpIsFastestAndStagesAreOutermost) {
  const TrainerLayout layout = trainers("megatron:(attn:d2p2t2c2|ffn:d2p2t1e4)");
  EXPECT_EQ(place_of(layout, 0), Place(0, 0, 0, 0, 0, 0, 0));
  EXPECT_EQ(place_of(layout, 1), Place(0, 0, 0, 1, 0, 1, 0));
  EXPECT_EQ(place_of(layout, 2), Place(0, 0, 1, 0, 0, 2, 0));
  EXPECT_EQ(place_of(layout, 7), Place(0, 1, 1, 1, 1, 3, 0));
  EXPECT_EQ(place_of(layout, 8), Place(1, 0, 0, 0, 0, 0, 0));
  EXPECT_EQ(place_of(layout, 13), Place(1, 1, 0, 1, 1, 1, 0));
}

TEST(TrainerRanks, WithStagesWithinDataParallelRanks) {
  TrainerLayout layout = trainers("megatron:(attn:d2p2t2c1|ffn:d2p2t1e2)");
  layout.order = TrainerOrder::kTpPpDp;
  EXPECT_NO_THROW(require_one_stage(layout));
  EXPECT_EQ(place_of(layout, 1), Place(0, 0, 0, 1, 0, 1, 0));
  EXPECT_EQ(place_of(layout, 2), Place(1, 0, 0, 0, 0, 0, 0));
  EXPECT_EQ(place_of(layout, 5), Place(0, 1, 0, 1, 1, 1, 0));
  EXPECT_EQ(place_of(layout, 6), Place(1, 1, 0, 0, 1, 0, 0));

  TrainerLayout two_stages = trainers("megatron:(attn:d2p2t2|ffn:d1p2e4)");
  EXPECT_NO_THROW(require_one_stage(two_stages));
  two_stages.order = TrainerOrder::kTpPpDp;
  EXPECT_THROW(require_one_stage(two_stages), UsageError);
}

TEST(TrainerStages, ChunksOfAllStagesTakeTurns) {
  TrainerLayout layout = trainers("megatron:p2");
  layout.stage_layers = {1, 2, 3, 0};
  const auto first = trainer_chunks(layout, 0, 6);
  const auto last = trainer_chunks(layout, 1, 6);
  ASSERT_EQ(first.size(), 2);
  ASSERT_EQ(last.size(), 2);
  EXPECT_EQ(first[0].first, 0);
  EXPECT_EQ(last[0].first, 1);
  EXPECT_EQ(first[1].first, 3);
  EXPECT_EQ(first[1].layer_prefix(layout, 4), "vp_stages.1.decoder.layers.1.");
  EXPECT_TRUE(first[0].embedding);
  EXPECT_TRUE(last[1].head);
  // The norm is where the last decoder layer is, the head on the last stage all the same.
  EXPECT_TRUE(first[1].final_norm);
  EXPECT_FALSE(last[1].final_norm);
  layout.global_numbers = true;
  EXPECT_EQ(trainer_chunks(layout, 0, 6)[1].layer_prefix(layout, 4), "decoder.layers.4.");
  EXPECT_THROW(trainer_chunks(layout, 0, 7), UsageError);
  layout.stage_layers = {1, 2, 3};
  EXPECT_THROW(trainer_chunks(layout, 0, 6), UsageError);
  layout.stage_layers = {};
  EXPECT_EQ(trainer_chunks(layout, 1, 6)[0].first, 3);
  EXPECT_THROW(trainer_chunks(layout, 0, 7), UsageError);
}

TEST(MegatronNames, WrappersComeOff) {
  const auto parts = [](const char* stored) {
    const UnwrappedName name = unwrap_name(stored);
    return name.chunk + "|" + name.name;
  };
  EXPECT_EQ(parts("decoder.layers.0.x"), "|decoder.layers.0.x");
  EXPECT_EQ(parts("module.module.decoder.x"), "|decoder.x");
  EXPECT_EQ(parts("vp_stages.3.module.language_model.decoder.x"), "vp_stages.3.|decoder.x");
  EXPECT_EQ(parts("module.vp_stages.0.embedding.x"), "vp_stages.0.|embedding.x");
  EXPECT_EQ(parts("vp_stages.3"), "|vp_stages.3");
}

/// Every box that a trainer may send.
std::map<std::uint32_t, std::vector<Box>> held_boxes(const Family& family, const TrainerLayout& layout,
                                                     std::int64_t rank) {
  std::map<std::uint32_t, std::vector<Box>> boxes;
  for (const TrainerTensor& tensor : trainer_tensors(family, layout, rank)) {
    if (tensor.copy) continue;
    for (const Part& part : tensor.held.parts) boxes[part.tensor].push_back(part.box);
  }
  return boxes;
}

TEST(MegatronNames, WhatLiesBesideWeights) {
  for (const char* name :
       {"decoder.layers.0.mlp.experts.linear_fc1._extra_state0",
        "decoder.layers.0.mlp.linear_fc1._extra_state",
        "decoder.layers.0.mlp.linear_fc1._extra_state/shard_0_2",
        "decoder.layers.0.mlp.linear_fc1.weight_quantizer._amax", "rotary_pos_emb.inv_freq"}) {
    EXPECT_TRUE(trainer_may_ignore(name)) << name;
  }
  EXPECT_FALSE(trainer_may_ignore("decoder.layers.0.self_attention.linear_qkv.bias"));
  for (const char* name : {"optimizer.state.exp_avg", "rng_state", "iteration"}) {
    EXPECT_NE(trainer_refusal(name).find("write the weights alone"), std::string::npos) << name;
  }
}

TEST(TrainerPlans, EachTrainerSendsBoxesThatItHolds) {
  for (const bool moe : {false, true}) {
    naive::Model model = moe ? small_moe() : naive::Model();
    model.tied = !moe;
    const auto family = model.family();
    for (const char* text : {"megatron:t2", "megatron:(attn:d2p2t2c1|ffn:d1p2t2e2)",
                             "megatron:(attn:p2t4|ffn:e4)", "megatron:(attn:c4|ffn:t2e2)", "megatron:d3p2"}) {
      SCOPED_TRACE(fmt::format("{} {}", moe, text));
      Topology topology = topology_of(1, "tp=2,ep=2");
      topology.trainer_layout = trainers(text);
      topology.trainers = topology.trainer_layout->ranks();
      const Plan plan = make_plan(*family, topology, capped(64 << 10));
      std::vector<std::map<std::uint32_t, std::vector<Box>>> held;
      for (std::int64_t rank = 0; rank < topology.trainers; ++rank) {
        held.push_back(held_boxes(*family, *topology.trainer_layout, rank));
      }
      for_each_segment(plan, [&](const Bucket& bucket, const Segment& segment) {
        const std::vector<Box>& boxes = held[bucket.root][segment.tensor];
        EXPECT_TRUE(std::any_of(boxes.begin(), boxes.end(),
                                [&](const Box& box) { return box.contains(segment.box); }))
            << bucket.root << " sends " << segment.box.to_string() << " of "
            << family->catalog()[segment.tensor].name;
      });
    }
  }
}

TEST(TrainerPlans, ReplicasShareTheSending) {
  const auto family = small_moe().family();
  Topology topology = topology_of(1, "tp=1");
  topology.trainer_layout = trainers("megatron:(attn:d4t1|ffn:d4)");
  topology.trainers = 4;
  const Plan plan = make_plan(*family, topology, capped(64 << 10));
  const auto traffic = plan.traffic();
  for (std::size_t rank = 0; rank < 4; ++rank) {
    EXPECT_LE(std::abs(traffic[rank].sent * 4 - plan.wire_bytes()), 8 * Limits::kLeastBucketBytes);
  }
}

}  // namespace

}  // namespace weightcast
