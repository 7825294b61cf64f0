#include <gtest/gtest.h>

#include <fmt/format.h>

#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/boxes.hpp"
#include "emulated_update.hpp"
#include "model/landing/landed_family.hpp"
#include "model/landing/landing_map.hpp"
#include "model/landing/unread_rows.hpp"
#include "model_configs.hpp"
#include "naive_model.hpp"
#include "plan_cases.hpp"
#include "support/landing_json.hpp"

namespace weightcast {

namespace {

using nlohmann::json;

EngineLayout vllm_layout(std::int64_t tp, std::int64_t ep, std::int64_t pp,
                         std::vector<std::int64_t> stage_layers = {}) {
  EngineLayout layout;
  layout.engine = Engine::kVllm;
  layout.tp = tp;
  layout.ep = ep;
  layout.pp = pp;
  layout.stage_layers = std::move(stage_layers);
  return layout;
}

std::shared_ptr<const LandingMap> parsed(const json& map) {
  return std::make_shared<LandingMap>(parse_landing_map(map.dump(), "map.json"));
}

void expect_same(const Parameter& a, const Parameter& b) {
  EXPECT_EQ(a.name, b.name);
  EXPECT_EQ(a.dtype, b.dtype) << a.name;
  EXPECT_EQ(a.shape, b.shape) << a.name;
  ASSERT_EQ(a.parts.size(), b.parts.size()) << a.name;
  for (std::size_t i = 0; i < a.parts.size(); ++i) {
    EXPECT_EQ(a.parts[i].tensor, b.parts[i].tensor) << a.name;
    EXPECT_EQ(a.parts[i].box, b.parts[i].box) << a.name;
    EXPECT_EQ(a.parts[i].offset, b.parts[i].offset) << a.name;
    // A row alone has no other behind it.
    if (a.parts[i].box.rows > 1) {
      EXPECT_EQ(a.parts[i].pitch, b.parts[i].pitch) << a.name;
    }
    EXPECT_EQ(a.parts[i].layout, b.parts[i].layout) << a.name;
  }
  ASSERT_EQ(a.padding.size(), b.padding.size()) << a.name;
  for (std::size_t i = 0; i < a.padding.size(); ++i) {
    EXPECT_EQ(a.padding[i].offset, b.padding[i].offset) << a.name;
    EXPECT_EQ(a.padding[i].bytes, b.padding[i].bytes) << a.name;
    EXPECT_EQ(a.padding[i].byte, b.padding[i].byte) << a.name;
    EXPECT_EQ(a.padding[i].row, b.padding[i].row) << a.name;
    EXPECT_EQ(a.padding[i].rows, b.padding[i].rows) << a.name;
    EXPECT_EQ(a.padding[i].layout, b.padding[i].layout) << a.name;
  }
}

void expect_same(const Family& a, const Family& b, const EngineLayout& layout) {
  ASSERT_EQ(a.catalog().size(), b.catalog().size());
  for (std::uint32_t i = 0; i < a.catalog().size(); ++i) {
    EXPECT_EQ(a.catalog()[i].name, b.catalog()[i].name);
    EXPECT_EQ(a.catalog()[i].dtype, b.catalog()[i].dtype);
    EXPECT_EQ(a.catalog()[i].shape, b.catalog()[i].shape);
  }
  for (std::int64_t rank = 0; rank < layout.replica_ranks(); ++rank) {
    const std::vector<Parameter> of_a = a.parameters(layout, engine_rank(layout, rank));
    const std::vector<Parameter> of_b = b.parameters(layout, engine_rank(layout, rank));
    ASSERT_EQ(of_a.size(), of_b.size());
    for (std::size_t i = 0; i < of_a.size(); ++i) expect_same(of_a[i], of_b[i]);
  }
}

/// A family of tests/data/vllm (two layers, small odd sizes).
json config_of(const std::string& model) {
  return json::parse(text_of(fmt::format("{}/vllm/{}/config.json", WEIGHTCAST_TEST_DATA, model)));
}

struct Case {
  const char* model;
  EngineLayout layout;
};

class RoundTrip : public ::testing::TestWithParam<Case> {};

TEST_P(RoundTrip, AMapOfWhatAFamilySaysIsThatFamily) {
  const json config = config_of(GetParam().model);
  const EngineLayout& layout = GetParam().layout;
  const auto family = family_of(config);
  const auto map = parsed(landing_json(*family, layout));
  expect_same(*family, *make_landed_family(map, nullptr), layout);
  // And nothing differs.
  const auto both = make_landed_family(map, family_of(config));
  expect_same(*family, *both, layout);
  EXPECT_EQ(both->left_out(), family->left_out());
}

TEST_P(RoundTrip, AndIsPlannedAlike) {
  const auto family = family_of(config_of(GetParam().model));
  Topology topology;
  topology.trainers = 2;
  topology.engine = GetParam().layout;
  const Plan plan = make_plan(*family, topology, Limits());
  const auto map = parsed(landing_json(*family, topology.engine));
  const auto landed = make_landed_family(map, nullptr);
  EXPECT_EQ(make_plan(*landed, topology, Limits()).hash, plan.hash);
  topology.engine.landing = map->hash;
  EXPECT_NE(make_plan(*landed, topology, Limits()).hash, plan.hash);
  for (std::int64_t rank = 0; rank < topology.ranks(); ++rank) {
    EXPECT_EQ(make_rank_plan(plan, *landed, rank).moves.size(),
              make_rank_plan(plan, *family, rank).moves.size());
  }
}

INSTANTIATE_TEST_SUITE_P(
    Maps, RoundTrip,
    ::testing::Values(Case{"qwen3", vllm_layout(1, 1, 1)}, Case{"qwen3", vllm_layout(2, 1, 1)},
                      Case{"qwen3", vllm_layout(1, 1, 2)}, Case{"qwen2", vllm_layout(1, 1, 1)},
                      Case{"qwen2", vllm_layout(2, 1, 1)}, Case{"qwen2", vllm_layout(2, 1, 2)},
                      Case{"llama", vllm_layout(1, 1, 1)}, Case{"llama", vllm_layout(2, 1, 1)},
                      Case{"llama", vllm_layout(2, 1, 2)}, Case{"qwen3-moe", vllm_layout(1, 1, 1)},
                      Case{"qwen3-moe", vllm_layout(2, 1, 1)}, Case{"qwen3-moe", vllm_layout(2, 2, 1)},
                      Case{"qwen3-moe", vllm_layout(2, 2, 2, {2, 1})},
                      Case{"qwen3-moe", vllm_layout(4, 2, 1)}));

/// Every byte of an update of `model` by its map, beside what the formulas of engines say.
void expect_updated(const naive::Model& model, const EngineLayout& layout) {
  EngineLayout as_loaded = layout;
  as_loaded.moe_layout = EngineLayout().moe_layout;
  const auto landed = make_landed_family(parsed(landing_json(*model.family(), as_loaded)), model.family());
  Topology topology;
  topology.engine = layout;
  const Plan plan = make_plan(*landed, topology, Limits());
  const naive::Weights weights = naive::random_weights(model, 1);
  const std::vector<EmulatedRank> ranks = emulate_update(plan, *landed, weights);
  for (std::int64_t rank = 0; rank < layout.replica_ranks(); ++rank) {
    expect_parameters(ranks.at(static_cast<std::size_t>(1 + rank)),
                      naive::parameters(model, layout, engine_rank(layout, rank), weights));
  }
}

TEST(Landing, AnUpdateWritesWhatTheMapSays) {
  expect_updated(plan_cases::small_moe(), vllm_layout(2, 2, 1));
  naive::Model dense;
  dense.tied = true;
  dense.bias = true;
  expect_updated(dense, vllm_layout(2, 1, 2));
}

TEST(Landing, ExpertsTakeTheirFormOnACpuOnTop) {
  naive::Model model = plan_cases::small_moe();
  model.expert_inner = 40;  // padded to 64, or in two parts to 32
  for (const std::int64_t ep : {1, 2}) {
    EngineLayout layout = vllm_layout(2, ep, 1);
    layout.moe_layout = "vllm-cpu";
    expect_same(*model.family(),
                *make_landed_family(parsed(landing_json(*model.family(), vllm_layout(2, ep, 1))), nullptr),
                layout);
  }
}

/// A map of hand-picked tensors and parameters on one rank.
json by_hand(const json& tensors, const json& rank) {
  return {{"landing", 1},
          {"engine", "vllm"},
          {"engine_version", "0.32.0"},
          {"key", std::string(64, '0')},
          {"made_for",
           {{"engine", "vllm"},
            {"engine_version", "0.32.0"},
            {"architecture", "NoFamily"},
            {"tp", 1},
            {"pp", 1},
            {"ep", 1}}},
          {"layout", {{"tp", 1}, {"pp", 1}, {"ep", 1}}},
          {"tensors", tensors},
          {"ranks", json::array({rank})}};
}

/// `weights` as BF16 bits that count from `first` on.
std::vector<std::byte> counting(std::int64_t elements, std::uint16_t first) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(elements) * 2);
  for (std::int64_t i = 0; i < elements; ++i) {
    const auto value = static_cast<std::uint16_t>(first + i);
    std::memcpy(bytes.data() + i * 2, &value, sizeof value);
  }
  return bytes;
}

TEST(Landing, TurnedBoxesLieBesideOthersOfOneParameter) {
  // fused [2, 3, 5]: of each of two experts [3, 5]. The parameter [2, 5, 7] has it turned in its first three
  // columns, then two of zeros, one that is left as it is, and a column of `bias`.
  const json map = by_hand(json::parse(R"([{"name": "fused", "dtype": "BF16", "shape": [2, 3, 5]},
                      {"name": "bias", "dtype": "BF16", "shape": [10, 1]},
                      {"name": "unread", "dtype": "BF16", "shape": [4]}])"),
                           json::parse(R"({"parameters": [{"name": "w", "dtype": "BF16", "shape": [2, 5, 7],
                                      "turned": [[0, 0, 3, 0, 5, 0, 0], [0, 3, 3, 0, 5, 5, 0]],
                                      "parts": [[1, 0, 10, 0, 1, 0, 6]],
                                      "zero": [[0, 10, 3, 2]]}],
                      "left": [{"name": "w", "boxes": [[0, 10, 5, 1]], "why": "padding"},
                               {"name": "map.weight", "shape": [6], "dtype": "int32", "why": "its own"}],
                      "skipped": [2]})"));
  const auto family = make_landed_family(parsed(map), nullptr);
  EXPECT_TRUE(family->may_ignore("unread"));
  EXPECT_FALSE(family->may_ignore("fused"));
  EXPECT_TRUE(family->is_engines_own("map.weight"));
  EXPECT_FALSE(family->is_engines_own("w"));
  Topology topology;
  topology.engine = vllm_layout(1, 1, 1);
  const Plan plan = make_plan(*family, topology, Limits());
  const naive::Weights weights{{"fused", counting(30, 1000)}, {"bias", counting(10, 2000)}};
  const std::vector<EmulatedRank> ranks = emulate_update(plan, *family, weights);
  const std::vector<std::byte>& bytes = ranks.at(1).parameters.at(0);
  constexpr std::uint16_t kAsBefore = 0xa5a5;  // emulated memory held rubbish
  for (std::int64_t row = 0; row < 10; ++row) {
    for (std::int64_t col = 0; col < 7; ++col) {
      std::uint16_t value = 0;
      std::memcpy(&value, bytes.data() + (row * 7 + col) * 2, sizeof value);
      const std::int64_t expert = row / 5;
      const std::int64_t expected = col < 3    ? 1000 + expert * 15 + col * 5 + row % 5
                                    : col < 5  ? 0
                                    : col == 5 ? kAsBefore
                                               : 2000 + row;
      EXPECT_EQ(value, expected) << row << ", " << col;
    }
  }
}

// tests/data/landing_maps: what vLLM's own loader does with tiny models of families that are not described
// here.
class LoadersMap : public ::testing::TestWithParam<const char*> {};

/// The bytes of a parameter by the words of the map, element by element.
std::vector<std::byte> applied(const json& parameter, const json& tensors, const naive::Weights& weights) {
  const Shape shape(parameter["shape"].get<std::vector<std::int64_t>>());
  const std::int64_t element = parameter["dtype"] == "F32" ? 4 : 2;
  std::vector<std::byte> bytes(static_cast<std::size_t>(shape.elements() * element));
  for (const bool turned : {false, true}) {
    for (const json& part : parameter.value(turned ? "turned" : "parts", json::array())) {
      const json& tensor = tensors[part[0].get<std::size_t>()];
      const std::int64_t cols = Shape(tensor["shape"].get<std::vector<std::int64_t>>()).cols();
      const std::vector<std::byte>& values = weights.at(tensor["name"]);
      const auto n = part.get<std::vector<std::int64_t>>();
      for (std::int64_t r = 0; r < n[2]; ++r) {
        for (std::int64_t c = 0; c < n[4]; ++c) {
          const std::int64_t row = n[5] + (turned ? c : r);
          const std::int64_t col = n[6] + (turned ? r : c);
          std::memcpy(bytes.data() + (row * shape.cols() + col) * element,
                      values.data() + ((n[1] + r) * cols + n[3] + c) * element,
                      static_cast<std::size_t>(element));
        }
      }
    }
  }
  return bytes;
}

TEST_P(LoadersMap, AnUpdateDoesWhatTheLoaderDid) {
  const std::string path = fmt::format("{}/landing_maps/{}.json", WEIGHTCAST_TEST_DATA, GetParam());
  const std::string text = text_of(path);
  const json map = json::parse(text);
  const auto parsed_map = std::make_shared<LandingMap>(parse_landing_map(text, path));
  const auto family = make_landed_family(parsed_map, nullptr);
  naive::Weights weights;
  std::mt19937 random(1);
  for (const Tensor& tensor : family->catalog().tensors()) {
    std::vector<std::byte>& bytes = weights[tensor.name];
    bytes.resize(static_cast<std::size_t>(tensor.bytes()));
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  }
  Topology topology;
  topology.trainers = 2;
  topology.engine = layout_of(*parsed_map);
  const Plan plan = make_plan(*family, topology, Limits());
  const std::vector<EmulatedRank> ranks = emulate_update(plan, *family, weights);
  for (std::size_t rank = 0; rank < parsed_map->ranks.size(); ++rank) {
    const json& parameters = map["ranks"][rank]["parameters"];
    const EmulatedRank& updated = ranks.at(2 + rank);
    ASSERT_EQ(updated.parameters.size(), parameters.size());
    for (std::size_t p = 0; p < parameters.size(); ++p) {
      EXPECT_EQ(updated.rank_plan.parameters[p].name, parameters[p]["name"].get<std::string>());
      EXPECT_TRUE(updated.parameters[p] == applied(parameters[p], map["tensors"], weights))
          << parameters[p]["name"];
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tiny, LoadersMap,
                         ::testing::Values("gpt-oss_tp2ep", "qwen3-vl-moe-hub_tp2", "mimo-v2-flash_tp2"));

TEST(Landing, ATensorThatIsReadInPartTravelsInPart) {
  const json map = by_hand(json::parse(R"([{"name": "kv", "dtype": "BF16", "shape": [8, 4]}])"),
                           json::parse(R"({"parameters": [{"name": "k", "dtype": "BF16", "shape": [3, 4],
                                              "parts": [[0, 2, 3, 0, 4, 0, 0]]},
                                             {"name": "v", "dtype": "BF16", "shape": [2, 2],
                                              "parts": [[0, 4, 2, 1, 2, 0, 0]]}]})"));
  const auto parsed_map = parsed(map);
  EXPECT_EQ(parsed_map->tensors[0].unread, 32 - 12 - 4 + 2);  // two elements are in both
  expect_has(unread_text(*parsed_map), {"of 1 tensor elements", "rows 0..2, columns 0..4 of kv [8, 4]"});
  const auto family = make_landed_family(parsed_map, nullptr);
  Topology topology;
  topology.engine = vllm_layout(1, 1, 1);
  std::int64_t sent = 0;
  for (const Segment& segment : make_plan(*family, topology, Limits()).segments) sent += segment.box.area();
  EXPECT_EQ(sent, 12 + 4 - 2);
}

TEST(Landing, TensorsAreOfTheTypeThatParametersWantThemIn) {
  const json map = by_hand(json::parse(R"([{"name": "router", "dtype": "BF16", "shape": [6, 4]},
                              {"name": "norm", "dtype": "F32", "shape": [4]}])"),
                           json::parse(R"({"parameters": [{"name": "gate", "dtype": "F32", "shape": [6, 4],
                                              "parts": [[0, 0, 6, 0, 4, 0, 0]]},
                                             {"name": "n", "dtype": "BF16", "shape": [4],
                                              "parts": [[1, 0, 1, 0, 4, 0, 0]]}]})"));
  const auto family = make_landed_family(parsed(map), nullptr);
  EXPECT_EQ(family->catalog()[0].dtype, DType::kF32);
  EXPECT_TRUE(family->catalog()[0].widened);
  EXPECT_EQ(family->catalog()[1].dtype, DType::kBF16);
  EXPECT_FALSE(family->catalog()[1].widened);
}

TEST(Landing, WhatGoesThroughTheLoaderIsATensorWhole) {
  const json tensors = json::parse(R"([{"name": "A_log", "dtype": "BF16", "shape": [6]},
                                       {"name": "D", "dtype": "BF16", "shape": [6]}])");
  json rank =
      json::parse(R"({"parameters": [{"name": "mixer.A", "dtype": "F32", "shape": [6], "aliases": ["A"]},
                                             {"name": "mixer.D", "dtype": "F32", "shape": [6],
                                              "parts": [[1, 0, 1, 0, 6, 0, 0]]}],
                              "loader": [{"tensor": 0, "parameters": ["mixer.A"], "why": "aten.exp computes"}]})");
  const auto family = make_landed_family(parsed(by_hand(tensors, rank)), nullptr);
  const EngineLayout layout = vllm_layout(1, 1, 1);
  const std::vector<Parameter> parameters = family->parameters(layout, engine_rank(layout, 0));
  ASSERT_EQ(parameters.size(), 2u);
  EXPECT_EQ(parameters[0].name, "mixer.D");
  EXPECT_FALSE(parameters[0].for_loader);
  EXPECT_EQ(parameters[1].name, "A_log");
  EXPECT_TRUE(parameters[1].for_loader);
  // As it is stored, whatever the loader makes of it.
  EXPECT_EQ(parameters[1].dtype, DType::kBF16);
  ASSERT_EQ(parameters[1].parts.size(), 1u);
  EXPECT_EQ(parameters[1].parts[0].box, Box::whole(parameters[1].shape));
  EXPECT_TRUE(family->is_engines_own("mixer.A"));
  EXPECT_TRUE(family->is_engines_own("A"));
  EXPECT_FALSE(family->is_engines_own("mixer.D"));
  // A parameter has either the loader or boxes, and no other one the tensor's name.
  rank["parameters"][0]["zero"] = {{0, 1, 0, 6}};
  expect_has(message_of([&] { parsed(by_hand(tensors, rank)); }), {"rank 0", "mixer.A", "boxes as well"});
  rank["parameters"][0].erase("zero");
  rank["parameters"][1]["name"] = "A_log";
  expect_has(message_of([&] { parsed(by_hand(tensors, rank)); }),
             {"rank 0", "A_log", "the name of a tensor"});
}

TEST(Landing, AnotherLayoutIsRefused) {
  const auto family = family_of(config_of("qwen3-moe"));
  const auto landed = make_landed_family(parsed(landing_json(*family, vllm_layout(2, 1, 1))), nullptr);
  for (EngineLayout layout : {vllm_layout(1, 1, 1), vllm_layout(2, 2, 1), vllm_layout(2, 1, 2)}) {
    expect_has(message_of<UsageError>([&] { landed->parameters(layout, engine_rank(layout, 0)); }),
               {"--inference", "map.json", "tp=2,ep=1,pp=1"});
  }
  EngineLayout layout = vllm_layout(2, 1, 1);
  layout.engine = Engine::kSglang;
  expect_has(message_of<UsageError>([&] { landed->parameters(layout, engine_rank(layout, 0)); }),
             {"sglang", "vllm"});
  layout = vllm_layout(2, 1, 1);
  layout.moe_layout = "cutlass";
  expect_has(message_of<UsageError>([&] { landed->parameters(layout, engine_rank(layout, 0)); }),
             {"--moe-layout cutlass", "triton", "vllm-cpu"});
  layout.moe_layout = "triton";
  layout.quantizer = parse_quantizer("fp8-block");
  expect_has(message_of<UsageError>([&] { landed->parameters(layout, engine_rank(layout, 0)); }),
             {"--quantize", "--landing"});
}

TEST(Landing, MegatronsTrainersAreRefused) {
  const auto family = family_of(config_of("qwen3"));
  const auto landed = make_landed_family(parsed(landing_json(*family, vllm_layout(2, 1, 1))), nullptr);
  TrainerLayout trainers;
  trainers.option = "--trainer-alloc";
  expect_has(message_of<UsageError>([&] { trainer_tensors(*landed, trainers, 0); }),
             {"--trainer-alloc", "--landing map.json"});
}

/// What is said of a map of qwen3-moe beside its config, once `change` was made to the map.
std::string difference(const std::function<void(json&)>& change) {
  const json config = config_of("qwen3-moe");
  json map = landing_json(*family_of(config), vllm_layout(2, 2, 1));
  change(map);
  const auto parsed_map = parsed(map);
  return message_of([&] { make_landed_family(parsed_map, family_of(config)); });
}

json& parameter_named(json& map, std::size_t rank, const std::string& name) {
  for (json& parameter : map["ranks"][rank]["parameters"]) {
    if (parameter["name"] == name) return parameter;
  }
  throw std::runtime_error("no parameter " + name);
}

TEST(LandingCheck, ADifferenceNamesRankParameterAndBothBoxes) {
  constexpr const char* kQkv = "model.layers.1.self_attn.qkv_proj.weight";
  // k and v change places.
  const std::string swapped = difference([&](json& map) {
    json& parts = parameter_named(map, 1, kQkv)["parts"];
    std::swap(parts[1][0], parts[2][0]);
  });
  expect_has(swapped, {"map.json", "rank 1", kQkv, "model.layers.1.self_attn.v_proj.weight",
                       "model.layers.1.self_attn.k_proj.weight", "rows 32..64"});
  // Another half of the query heads.
  expect_has(difference([&](json& map) { parameter_named(map, 1, kQkv)["parts"][0][1] = 0; }),
             {"rank 1", kQkv, "rows 0..64", "rows 64..128"});
  // Zeros in place of a tensor.
  expect_has(
      difference([&](json& map) {
        json& parameter = parameter_named(map, 0, "model.norm.weight");
        parameter["zero"] = json::array({json::array({0, 1, 0, 40})});
        parameter["parts"] = json::array({json::array({parameter["parts"][0][0], 0, 1, 40, 40, 0, 40})});
      }),
      {"rank 0", "model.norm.weight", "no tensor there", "columns 0..80"});
  expect_has(difference([&](json& map) { parameter_named(map, 0, kQkv)["name"] = "other.weight"; }),
             {"rank 0", kQkv, "no such parameter"});
}

TEST(LandingCheck, ACutOfItsOwnIsNoDifference) {
  const json config = config_of("qwen3-moe");
  json map = landing_json(*family_of(config), vllm_layout(2, 2, 1));
  json& parts = parameter_named(map, 0, "model.embed_tokens.weight")["parts"];
  const json whole = parts[0];
  const std::int64_t rows = whole[2];
  parts = json::array({{whole[0], whole[1], 10, 0, 80, 0, 0},
                       {whole[0], whole[1].get<std::int64_t>() + 10, rows - 10, 0, 30, 10, 0},
                       {whole[0], whole[1].get<std::int64_t>() + 10, rows - 10, 30, 50, 10, 30}});
  EXPECT_NO_THROW(make_landed_family(parsed(map), family_of(config)));
}

/// The same map of a checkpoint that stacks the experts of a layer.
json stacked(const json& map, const Family& family) {
  const Catalog& catalog = family.catalog();
  json result = map;
  json& tensors = result["tensors"] = json::array();
  std::map<std::string, int> numbers;
  std::vector<std::pair<int, std::int64_t>> place(catalog.size());  // tensor, and from which row on
  for (std::uint32_t i = 0; i < catalog.size(); ++i) {
    const auto form = family.other_stored_form(catalog[i]);
    const std::string name = form ? form->name : catalog[i].name;
    const Shape& shape = form ? form->shape : catalog[i].shape;
    const auto [found, fresh] = numbers.emplace(name, static_cast<int>(tensors.size()));
    if (fresh) tensors.push_back({{"name", name}, {"dtype", "BF16"}, {"shape", shape.extents()}});
    place[i] = {found->second, form ? form->row : 0};
  }
  for (json& rank : result["ranks"]) {
    std::vector<bool> read(tensors.size(), false);
    for (json& parameter : rank["parameters"]) {
      for (json& part : parameter["parts"]) {
        const auto [number, row] = place[part[0].get<std::size_t>()];
        part[0] = number;
        part[1] = part[1].get<std::int64_t>() + row;
        read[static_cast<std::size_t>(number)] = true;
      }
    }
    rank["skipped"] = json::array();
    for (std::size_t i = 0; i < read.size(); ++i) {
      if (!read[i]) rank["skipped"].push_back(i);
    }
  }
  return result;
}

TEST(LandingCheck, StackedExpertsAreNoDifference) {
  const json config = config_of("qwen3-moe");
  const auto family = family_of(config);
  for (const EngineLayout& layout : {vllm_layout(2, 1, 1), vllm_layout(2, 2, 1)}) {
    json map = stacked(landing_json(*family, layout), *family);
    EXPECT_LT(map["tensors"].size(), family->catalog().size());
    EXPECT_NO_THROW(make_landed_family(parsed(map), family_of(config)));
    for (json& parameter : map["ranks"][1]["parameters"]) {
      if (parameter["name"] != "model.layers.0.mlp.experts.routed_experts.w13_weight") continue;
      std::swap(parameter["parts"][0][1], parameter["parts"][1][1]);
    }
    expect_has(message_of([&] { make_landed_family(parsed(map), family_of(config)); }),
               {"rank 1", "w13_weight", "model.layers.0.mlp.experts.gate_up_proj"});
  }
}

TEST(Boxes, OverlapsAndGapsAreFound) {
  const Box whole{0, 4, 0, 6};
  const std::vector<Box> tiles{{0, 2, 0, 3}, {0, 1, 3, 3}, {1, 3, 3, 3}, {2, 2, 0, 3}};
  EXPECT_FALSE(find_overlap(tiles));
  EXPECT_FALSE(find_gap(whole, tiles));
  for (std::size_t i = 0; i < tiles.size(); ++i) {
    std::vector<Box> others = tiles;
    others.erase(others.begin() + static_cast<std::ptrdiff_t>(i));
    const auto gap = find_gap(whole, others);
    ASSERT_TRUE(gap.has_value());
    EXPECT_EQ(gap->row, tiles[i].row);
    EXPECT_EQ(gap->col, tiles[i].col);
    others = tiles;
    others.push_back({tiles[i].row + tiles[i].rows - 1, 1, tiles[i].col + tiles[i].cols - 1, 1});
    const auto both = find_overlap(others);
    ASSERT_TRUE(both.has_value());
    EXPECT_FALSE(both->first.intersect(both->second).empty());
  }
  EXPECT_TRUE(find_gap(whole, {}).has_value());
}

}  // namespace

}  // namespace weightcast
