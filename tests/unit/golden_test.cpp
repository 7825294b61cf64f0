#include <gtest/gtest.h>

#include <fmt/format.h>

#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "emulated_update.hpp"
#include "model/layouts/moe_layout.hpp"
#include "model/layouts/row_shuffle.hpp"
#include "model/sharding.hpp"
#include "plan/plan.hpp"

// The vectors were produced by running the loaders of SGLang itself. Tensors of int32 tags go through the
// product's layouts, plan, programs and host executor; what arrives must be the tags that the loaders put
// there.
namespace weightcast {

namespace {

using Tags = std::vector<std::int32_t>;

nlohmann::json golden(const std::string& name) {
  std::ifstream file(fmt::format("{}/golden/{}.json", WEIGHTCAST_TEST_DATA, name));
  EXPECT_TRUE(file.good()) << name;
  return nlohmann::json::parse(file);
}

std::vector<std::byte> bytes_of(const Tags& tags) {
  std::vector<std::byte> bytes(tags.size() * sizeof(std::int32_t));
  std::memcpy(bytes.data(), tags.data(), bytes.size());
  return bytes;
}

Tags tags_of(const std::vector<std::byte>& bytes) {
  Tags tags(bytes.size() / sizeof(std::int32_t));
  std::memcpy(tags.data(), bytes.data(), bytes.size());
  return tags;
}

/// A catalog of tagged tensors.
struct Tagged {
  Catalog catalog;
  naive::Weights weights;

  void add(const std::string& name, Shape shape, const Tags& tags) {
    ASSERT_EQ(static_cast<std::int64_t>(tags.size()), shape.elements());
    catalog.add(name, DType::kI32, shape);
    weights[name] = bytes_of(tags);
  }
};

/// Tags that depend on the row alone.
Tags row_tags(std::int64_t rows, std::int64_t cols, std::int32_t first) {
  Tags tags;
  for (std::int64_t row = 0; row < rows; ++row) {
    tags.insert(tags.end(), static_cast<std::size_t>(cols), first + static_cast<std::int32_t>(row));
  }
  return tags;
}

/// Every tag `cols` times.
Tags repeated(const Tags& tags, std::int64_t cols) {
  Tags result;
  for (const std::int32_t tag : tags) result.insert(result.end(), static_cast<std::size_t>(cols), tag);
  return result;
}

std::vector<EmulatedRank> update(const Tagged& tagged, const EngineLayout& engine, std::int64_t trainers,
                                 ListedFamily::Parameters parameters) {
  const ListedFamily family(tagged.catalog, std::move(parameters));
  Topology topology;
  topology.trainers = trainers;
  topology.engine = engine;
  Limits limits;
  limits.bucket_bytes = Limits::kLeastBucketBytes;
  return emulate_update(make_plan(family, topology, limits), family, tagged.weights);
}

Tagged tagged_experts() {
  // E=4 I=8 H=3: gate[e][i][h]=1000e+3i+h, up=1000e+100+3i+h, down[e][h][j]=1000e+200+8h+j
  Tagged tagged;
  for (std::int32_t e = 0; e < 4; ++e) {
    const auto range = [&](std::int32_t first) {
      Tags tags(24);
      std::iota(tags.begin(), tags.end(), 1000 * e + first);
      return tags;
    };
    tagged.add(fmt::format("experts.{}.gate", e), {8, 3}, range(0));
    tagged.add(fmt::format("experts.{}.up", e), {8, 3}, range(100));
    tagged.add(fmt::format("experts.{}.down", e), {3, 8}, range(200));
  }
  return tagged;
}

TEST(Golden, FusedExpertsOfTritonAndCutlass) {
  const nlohmann::json cases = golden("triton_fused_moe_tp_ep")["cases"];
  ASSERT_EQ(cases.size(), 26u);
  for (const auto& c : cases) {
    SCOPED_TRACE(fmt::format("moe_tp {} ep {} rank {}/{} up_first {}", c["moe_tp"].dump(), c["moe_ep"].dump(),
                             c["ep_rank"].dump(), c["tp_rank"].dump(), c["up_first"].dump()));
    const auto inner_parts = c["moe_tp"].get<std::int64_t>();
    EngineLayout engine;
    engine.ep = c["moe_ep"];
    engine.tp = inner_parts * engine.ep;
    engine.moe_layout = c["up_first"].get<bool>() ? "cutlass" : "triton";
    const auto parameters = [](const Catalog& catalog, const EngineLayout& layout, const EngineRank& rank) {
      const std::int64_t count = 4 / layout.ep;
      std::vector<ExpertTensors> slots;
      for (std::int64_t e = 0; e < count; ++e) {
        const std::string at = fmt::format("experts.{}.", rank.tp / layout.expert_tp() * count + e);
        slots.push_back({catalog.at(at + "gate"), catalog.at(at + "up"), catalog.at(at + "down")});
      }
      std::vector<Parameter> result;
      find_moe_layout(layout.moe_layout)
          .add_parameters(catalog, {"experts", slots, layout.expert_tp(), rank.tp % layout.expert_tp()},
                          result);
      return result;
    };
    const std::vector<EmulatedRank> ranks = update(tagged_experts(), engine, 1, parameters);
    const auto tp_rank = c["ep_rank"].get<std::int64_t>() * inner_parts + c["tp_rank"].get<std::int64_t>();
    const EmulatedRank& rank = ranks.at(static_cast<std::size_t>(1 + tp_rank));
    ASSERT_EQ(rank.parameters.size(), 2u);
    EXPECT_EQ(rank.rank_plan.parameters[0].name, "experts.w13_weight");
    EXPECT_EQ(rank.rank_plan.parameters[0].shape, Shape(c["w13_shape"].get<std::vector<std::int64_t>>()));
    EXPECT_EQ(tags_of(rank.parameters[0]), c["w13"].get<Tags>());
    EXPECT_EQ(rank.rank_plan.parameters[1].name, "experts.w2_weight");
    EXPECT_EQ(rank.rank_plan.parameters[1].shape, Shape(c["w2_shape"].get<std::vector<std::int64_t>>()));
    EXPECT_EQ(tags_of(rank.parameters[1]), c["w2"].get<Tags>());
  }
}

TEST(Golden, RowOrdersOfTrtllm) {
  int compared = 0;
  const nlohmann::json cases = golden("trtllm_gen_row_perms")["cases"];
  for (const auto& c : cases) {
    if (c["block"].get<int>() != 32) continue;
    const auto rows = c["M"].get<std::int64_t>();
    SCOPED_TRACE(rows);
    // The vectors say where each row comes from, the layouts where it goes.
    const auto shuffle = c["shuffle"].get<std::vector<std::int64_t>>();
    const auto gated = c["w3_w1_chained"].get<std::vector<std::int64_t>>();
    for (std::int64_t row = 0; row < rows; ++row) {
      EXPECT_EQ(shuffle[static_cast<std::size_t>(shuffled_rows(1).row_offset(row))], row);
      const bool up = row < rows / 2;
      const std::int64_t to = shuffled_gated_rows(1).row_offset(up ? row : row - rows / 2) + (up ? 0 : 8);
      EXPECT_EQ(gated[static_cast<std::size_t>(to)], row);
    }
    ++compared;
  }
  EXPECT_GE(compared, 3);
}

TEST(Golden, ExpertsOfTrtllmInBlocksOfK) {
  const nlohmann::json c = golden("trtllm_bf16_blockmajork");
  const auto inner = c["I"].get<std::int64_t>();
  const auto hidden = c["H"].get<std::int64_t>();
  Catalog catalog;
  naive::Weights weights;
  // Sixteen bits of tag where a bf16 would stand.
  std::uint16_t tag = 0;
  const auto add = [&](const std::string& name, Shape shape) {
    catalog.add(name, DType::kBF16, shape);
    std::vector<std::byte>& bytes = weights[name];
    for (std::int64_t i = 0; i < shape.elements(); ++i, ++tag) {
      bytes.push_back(static_cast<std::byte>(tag & 0xff));
      bytes.push_back(static_cast<std::byte>(tag >> 8));
    }
  };
  add("gate", {inner, hidden});
  add("up", {inner, hidden});
  tag = 0;
  add("down", {hidden, inner});
  const auto parameters = [&](const Catalog& tensors, const EngineLayout&, const EngineRank&) {
    std::vector<Parameter> result;
    const std::vector<ExpertTensors> slots{{0, 1, 2}};
    ExpertMatrices matrices = find_moe_layout("trtllm").matrices({});
    matrices.inner_unit = inner;  // the vectors' weights were not padded
    add_experts(tensors, {"experts", slots, 1, 0}, matrices, result);
    return result;
  };
  const ListedFamily family(catalog, parameters);
  Topology topology;
  Limits limits;
  limits.bucket_bytes = Limits::kLeastBucketBytes;
  const auto ranks = emulate_update(make_plan(family, topology, limits), family, weights);
  const EmulatedRank& rank = ranks.at(1);
  const auto expect = [&](std::size_t number, const char* name) {
    const auto tags = c[name].get<std::vector<std::uint16_t>>();
    const std::vector<std::byte>& bytes = rank.parameters.at(number);
    ASSERT_EQ(bytes.size(), tags.size() * 2);
    EXPECT_EQ(std::memcmp(bytes.data(), tags.data(), bytes.size()), 0) << name;
    EXPECT_EQ(rank.rank_plan.parameters.at(number).shape,
              Shape(c[std::string(name) + "_shape"].get<std::vector<std::int64_t>>()));
  };
  expect(0, "w13");
  expect(1, "w2");
}

TEST(Golden, FusedQkvWithSharedKeyAndValueHeads) {
  const nlohmann::json cases = golden("qkv_gqa_tp")["cases"];
  ASSERT_EQ(cases.size(), 37u);
  constexpr std::int64_t kCols = 3;
  for (const auto& c : cases) {
    SCOPED_TRACE(fmt::format("heads {} kv {} tp {} rank {}", c["heads"].dump(), c["kv_heads"].dump(),
                             c["tp"].dump(), c["rank"].dump()));
    const auto heads = c["heads"].get<std::int64_t>();
    const auto kv_heads = c["kv_heads"].get<std::int64_t>();
    const auto head_dim = c["head_dim"].get<std::int64_t>();
    Tagged tagged;
    const auto add = [&](const std::string& kind, std::int64_t rows, std::int32_t first) {
      tagged.add(kind + ".weight", {rows, kCols}, row_tags(rows, kCols, first));
      tagged.add(kind + ".bias", {rows}, row_tags(rows, 1, first));
    };
    add("q", heads * head_dim, 0);
    add("k", kv_heads * head_dim, 1000);
    add("v", kv_heads * head_dim, 2000);
    EngineLayout engine;
    engine.tp = c["tp"];
    const auto parameters = [&](const Catalog& catalog, const EngineLayout& layout, const EngineRank& rank) {
      const TensorParallel tp(catalog, layout.tp, rank.tp);
      std::vector<Parameter> result;
      for (const std::string kind : {".weight", ".bias"}) {
        result.push_back(
            tp.fused_qkv("qkv" + kind, "q" + kind, "k" + kind, "v" + kind, heads, kv_heads, head_dim));
      }
      return result;
    };
    const std::vector<EmulatedRank> ranks = update(tagged, engine, 2, parameters);
    const EmulatedRank& rank = ranks.at(2 + c["rank"].get<std::size_t>());
    const auto rows = c["rows"].get<Tags>();
    EXPECT_EQ(rank.rank_plan.parameters[0].shape, (Shape{static_cast<std::int64_t>(rows.size()), kCols}));
    EXPECT_EQ(tags_of(rank.parameters[0]), repeated(rows, kCols));
    EXPECT_EQ(rank.rank_plan.parameters[1].shape, (Shape{static_cast<std::int64_t>(rows.size())}));
    EXPECT_EQ(tags_of(rank.parameters[1]), rows);
  }
}

TEST(Golden, VocabularyRangesOfRealModels) {
  const auto vectors = golden("vocab_embedding");
  ASSERT_EQ(vectors.at("ranges").size(), 36u);
  for (const auto& range : vectors.at("ranges")) {
    const auto vocabulary = range["vocab"].get<std::int64_t>();
    const auto tp_size = range["tp"].get<std::int64_t>();
    SCOPED_TRACE(fmt::format("vocabulary {} tp {}", vocabulary, tp_size));
    Catalog catalog;
    catalog.add("embed", DType::kI32, {vocabulary, 5});
    ASSERT_EQ(range["start_end_pad"].size(), static_cast<std::size_t>(tp_size));
    for (std::int64_t rank = 0; rank < tp_size; ++rank) {
      const auto& expected = range["start_end_pad"][static_cast<std::size_t>(rank)];
      const std::int64_t start = expected[0];
      const std::int64_t end = expected[1];
      const std::int64_t pad = expected[2];
      const Parameter parameter = TensorParallel(catalog, tp_size, rank).vocabulary("embed", "embed");
      EXPECT_EQ(parameter.shape, (Shape{range["rows_per_rank"].get<std::int64_t>(), 5}));
      ASSERT_EQ(parameter.parts.size(), start == end ? 0u : 1u) << rank;
      for (const Part& part : parameter.parts) EXPECT_EQ(part.box, (Box{start, end - start, 0, 5})) << rank;
      ASSERT_EQ(parameter.padding.size(), pad == 0 ? 0u : 1u) << rank;
      for (const Padding& padding : parameter.padding) {
        EXPECT_EQ(padding.offset, (end - start) * 20) << rank;
        EXPECT_EQ(padding.bytes, pad * 20) << rank;
      }
    }
  }
}

TEST(Golden, VocabularyRowsWithZerosBehind) {
  const nlohmann::json expected = golden("vocab_embedding")["load_V130_tp2"];
  constexpr std::int64_t kCols = 2;
  Tagged tagged;
  tagged.add("embed", {130, kCols}, row_tags(130, kCols, 1));
  EngineLayout engine;
  engine.tp = 2;
  const auto parameters = [](const Catalog& catalog, const EngineLayout& layout, const EngineRank& rank) {
    return std::vector<Parameter>{TensorParallel(catalog, layout.tp, rank.tp).vocabulary("embed", "embed")};
  };
  const std::vector<EmulatedRank> ranks = update(tagged, engine, 1, parameters);
  for (std::size_t rank = 0; rank < 2; ++rank) {
    EXPECT_EQ(tags_of(ranks[1 + rank].parameters[0]), repeated(expected[rank].get<Tags>(), kCols));
  }
}

TEST(Golden, ExpertsOfARankAreThoseOfTheLocalIndexMap) {
  // The cases without fused shared experts: what a rank's slots hold.
  const auto vectors = golden("triton_fused_moe_tp_ep");
  ASSERT_EQ(vectors.at("local_index_map").size(), 9u);
  for (const auto& c : vectors.at("local_index_map")) {
    if (c["n_fused_shared"] != 0) continue;
    naive::Model model;
    model.moe = true;
    model.experts = c["num_experts_total"];
    model.heads = 8;
    EngineLayout engine;
    engine.tp = engine.ep = c["ep"];
    const EngineRank rank = engine_rank(engine, c["ep_rank"]);
    const auto family = model.family();
    for (const Parameter& parameter : family->parameters(engine, rank)) {
      if (parameter.name != "model.layers.1.mlp.experts.w2_weight") continue;
      const auto local = c["local_of_physical"].get<Tags>();
      ASSERT_EQ(parameter.parts.size(), static_cast<std::size_t>(model.experts / engine.ep));
      for (std::size_t expert = 0; expert < local.size(); ++expert) {
        if (local[expert] < 0) continue;
        const Part& part = parameter.parts.at(static_cast<std::size_t>(local[expert]));
        EXPECT_EQ(family->catalog()[part.tensor].name,
                  fmt::format("model.layers.1.mlp.experts.{}.down_proj.weight", expert));
      }
    }
  }
}

}  // namespace

}  // namespace weightcast
