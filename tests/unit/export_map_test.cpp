// Export maps: what is refused, and which memory of trainers a plan is made of with one.

#include <gtest/gtest.h>

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "live/live_weights.hpp"
#include "live/published_layout.hpp"
#include "model/export_map.hpp"
#include "model_configs.hpp"
#include "plan/plan.hpp"
#include "source/binding.hpp"

namespace weightcast {

namespace {

using nlohmann::json;

constexpr std::int64_t kHuge = std::int64_t{1} << 62;

/// Two trainers: rows 0..2 and 2..4 of `a`, and both all of `b`.
json sound() {
  return {{"exports", 1},
          {"key", std::string(64, 'a')},
          {"made_for", {{"weightcast", "0.1.0"}, {"torch", "2.13.0"}, {"ranks", 2}}},
          {"tensors",
           {{{"name", "a"}, {"dtype", "BF16"}, {"shape", {4, 6}}},
            {{"name", "b"}, {"dtype", "F32"}, {"shape", {8}}}}},
          {"ranks",
           {{{"tensors",
              {{{"name", "own"}, {"dtype", "BF16"}, {"shape", {3, 6}}, {"boxes", {{0, 0, 2, 0, 6, 6, 6}}}},
               {{"name", "norm"}, {"dtype", "F32"}, {"shape", {8}}, {"boxes", {{1, 0, 1, 0, 8, 0, 8}}}}}},
             {"left", {"table"}}},
            {{"tensors",
              {{{"name", "own"}, {"dtype", "BF16"}, {"shape", {2, 12}}, {"boxes", {{0, 2, 2, 0, 6, 3, 12}}}},
               {{"name", "norm"}, {"dtype", "F32"}, {"shape", {8}}, {"boxes", {{1, 0, 1, 0, 8, 0, 8}}}}}}}}}};
}

json& own(json& map) {
  return map["ranks"][1]["tensors"][0];
}

json& box(json& map) {
  return own(map)["boxes"][0];
}

struct Mutant {
  const char* name;
  std::function<void(json&)> change;
  std::vector<std::string> words;  ///< of the one line that refuses it
};

const std::vector<Mutant>& mutants() {
  static const std::string where = "wrong.json: rank 1, tensor own: 'boxes'";
  static const std::vector<Mutant> all{
      {"no_format", [](json& m) { m.erase("exports"); }, {"'exports' is missing"}},
      {"other_format", [](json& m) { m["exports"] = 2; }, {"another format"}},
      {"format_text", [](json& m) { m["exports"] = "1"; }, {"'exports' is no whole number"}},
      {"no_key", [](json& m) { m.erase("key"); }, {"'key' is missing"}},
      {"short_key", [](json& m) { m["key"] = "abc"; }, {"'key'", "64 hexadecimal digits"}},
      {"key_with_a_path", [](json& m) { m["key"] = fmt::format("{}/..", std::string(61, 'a')); }, {"'key'"}},
      {"no_made_for", [](json& m) { m.erase("made_for"); }, {"'made_for' is missing"}},
      {"other_ranks", [](json& m) { m["made_for"]["ranks"] = 3; }, {"'ranks' is not 2"}},
      {"no_ranks", [](json& m) { m["ranks"] = json::array(); }, {"'ranks' is not 0"}},
      {"ranks_object", [](json& m) { m["ranks"] = json::object(); }, {"'ranks' is no list"}},
      {"rank_list", [](json& m) { m["ranks"][1] = json::array(); }, {"rank 1: is no object"}},
      {"no_tensors", [](json& m) { m.erase("tensors"); }, {"'tensors' is missing"}},
      {"tensor_twice", [](json& m) { m["tensors"][1]["name"] = "a"; }, {"tensor a: 'name' is there twice"}},
      {"empty_name", [](json& m) { m["tensors"][1]["name"] = ""; }, {"tensor number 1: 'name'"}},
      {"name_that_rings", [](json& m) { own(m)["name"] = "own\a"; }, {"rank 1: tensor number 0: 'name'"}},
      {"own_name_twice",
       [](json& m) { m["ranks"][1]["tensors"][1]["name"] = "own"; },
       {"rank 1: tensor own: 'name' is there twice"}},
      {"unknown_type", [](json& m) { m["tensors"][0]["dtype"] = "BF17"; }, {"'dtype' is 'BF17'"}},
      {"own_type", [](json& m) { own(m)["dtype"] = "F32"; }, {where, "are F32 of tensor a, which is BF16"}},
      {"other_type_of_one_size", [](json& m) { own(m)["dtype"] = "F16"; }, {where, "are F16 of tensor a"}},
      {"no_elements",
       [](json& m) {
         own(m)["shape"] = {0, 12};
       },
       {"'shape' is of no elements"}},
      {"shape_that_overflows",
       [](json& m) {
         m["tensors"][0]["shape"] = {kHuge, 4};
       },
       {"tensor a: 'shape' is of no elements, or of too many"}},
      {"tensors_beyond_all_memory",
       [](json& m) {
         for (int i = 0; i < 2048; ++i) {
           m["tensors"].push_back(
               {{"name", fmt::format("huge.{}", i)}, {"dtype", "F64"}, {"shape", {std::int64_t{1} << 50}}});
         }
       },
       {"the tensors", "no model has more than"}},
      {"no_boxes", [](json& m) { own(m).erase("boxes"); }, {"rank 1, tensor own: 'boxes' is missing"}},
      {"box_of_six", [](json& m) { box(m).erase(6); }, {where, "no list of 7 whole numbers"}},
      {"box_of_texts", [](json& m) { box(m)[3] = "0"; }, {where, "no list of 7 whole numbers"}},
      {"box_of_negatives", [](json& m) { box(m)[5] = -1; }, {where, "no list of 7 whole numbers"}},
      {"box_of_fractions", [](json& m) { box(m)[5] = 0.5; }, {where, "no list of 7 whole numbers"}},
      {"box_of_no_tensor", [](json& m) { box(m)[0] = 2; }, {where, "no number of the list 'tensors'"}},
      {"box_of_no_rows", [](json& m) { box(m)[2] = 0; }, {where, "has one that tensor a [4, 6] has not"}},
      {"rows_beyond_the_tensor",
       [](json& m) { box(m)[1] = 3; },
       {where, "has one that tensor a [4, 6] has not"}},
      {"columns_beyond_the_tensor", [](json& m) { box(m)[3] = 1; }, {where, "has one that tensor a"}},
      {"rows_that_overflow", [](json& m) { box(m)[1] = INT64_MAX; }, {where, "has one that tensor a"}},
      {"count_that_overflows", [](json& m) { box(m)[2] = INT64_MAX; }, {where, "has one that tensor a"}},
      {"from_beyond_its_own",
       [](json& m) { box(m)[5] = 7; },
       {where, "has one that its 24 elements have not"}},
      {"from_that_overflows", [](json& m) { box(m)[5] = INT64_MAX; }, {where, "its 24 elements have not"}},
      {"pitch_beyond_its_own", [](json& m) { box(m)[6] = 16; }, {where, "its 24 elements have not"}},
      {"pitch_that_overflows", [](json& m) { box(m)[6] = INT64_MAX; }, {where, "its 24 elements have not"}},
      {"rows_over_one_another", [](json& m) { box(m)[6] = 5; }, {where, "its 24 elements have not"}},
      {"box_twice",
       [](json& m) { own(m)["boxes"].push_back(box(m)); },
       {"rank 1: 'tensors' have elements of a twice: rows 2..4"}},
      {"boxes_that_overlap",
       [](json& m) {
         own(m)["boxes"].push_back({0, 0, 3, 2, 1, 0, 1});
       },
       {"rank 1: 'tensors' have elements of a twice"}},
      {"boxes_without_end",
       [](json& m) {
         const json first = box(m);
         for (int i = 0; i <= 1 << 17; ++i) own(m)["boxes"].push_back(first);
       },
       {where, "are more than 131072"}},
      {"elements_of_nobody",
       [](json& m) { own(m)["boxes"] = json::array(); },
       {"tensor a [4, 6] has 12 elements"}},
      {"left_is_exported", [](json& m) { m["ranks"][0]["left"] = {"own"}; }, {"'left' has own"}},
      {"left_twice",
       [](json& m) {
         m["ranks"][0]["left"] = {"table", "table"};
       },
       {"'left' has table"}},
      {"left_numbers", [](json& m) { m["ranks"][0]["left"] = {1}; }, {"'left' holds what is no text"}},
  };
  return all;
}

class WrongExportMap : public ::testing::TestWithParam<Mutant> {};

TEST_P(WrongExportMap, IsRefusedInOneLine) {
  json map = sound();
  GetParam().change(map);
  const std::string text = map.dump();
  const std::string line = message_of([&] { parse_export_map(text, "wrong.json"); });
  EXPECT_EQ(line.find('\n'), std::string::npos) << line;
  EXPECT_NE(line.find("wrong.json"), std::string::npos) << line;
  for (const std::string& word : GetParam().words) EXPECT_NE(line.find(word), std::string::npos) << line;
}

INSTANTIATE_TEST_SUITE_P(All, WrongExportMap, ::testing::ValuesIn(mutants()),
                         [](const auto& mutant) { return std::string(mutant.param.name); });

TEST(ExportMapText, ThatIsCutOffIsRefused) {
  const std::string text = sound().dump();
  for (std::size_t end = 0; end < text.size(); end += 7) {
    message_of([&] { parse_export_map(text.substr(0, end), "wrong.json"); });
  }
}

TEST(ExportMap, SaysWhichTensorsAreTheSameElements) {
  json map = sound();
  map["tensors"].push_back({{"name", "tied"}, {"dtype", "F32"}, {"shape", {8}}});
  for (int rank : {0, 1}) map["ranks"][rank]["tensors"][1]["boxes"].push_back({2, 0, 1, 0, 8, 0, 8});
  const ExportMap found = parse_export_map(map.dump(), "map.json");
  EXPECT_EQ(found.tensors[0].same_as, 0);
  EXPECT_EQ(found.tensors[1].same_as, 1);
  EXPECT_EQ(found.tensors[2].same_as, 1);
  EXPECT_NO_THROW(require_trainers(found, 2));
  expect_has(message_of<UsageError>([&] { require_trainers(found, 3); }), {"map.json: is of 2 trainers"});
}

LiveEntry entry_of(const std::string& name, DType dtype, const Shape& shape, std::int64_t offset) {
  LiveEntry entry;
  entry.name = name;
  entry.dtype = dtype;
  entry.shape = shape;
  entry.offset = offset;
  entry.strides.resize(shape.dims());
  std::int64_t stride = 1;
  for (std::size_t d = shape.dims(); d-- > 0; stride *= shape[d]) entry.strides[d] = stride;
  return entry;
}

/// Trainer 0 of sound().
Manifest published() {
  Manifest manifest;
  manifest.path = "trainer-0.json";
  manifest.ranks = 2;
  manifest.layout = fmt::format("map:{}", std::string(64, 'a'));
  manifest.segments.emplace_back().bytes = 4096;
  manifest.entries = {entry_of("own", DType::kBF16, {3, 6}, 256), entry_of("norm", DType::kF32, {8}, 512),
                      entry_of("table", DType::kI64, {3}, 1024)};
  return manifest;
}

TEST(ExportMap, MustBeOfWhatIsPublished) {
  const ExportMap map = parse_export_map(sound().dump(), "map.json");
  const auto refused = [&](const std::function<void(Manifest&)>& change, std::string_view words) {
    Manifest manifest = published();
    change(manifest);
    expect_has(message_of([&] { checkpoint_of(manifest, map); }),
               {"trainer-0.json: ", words, "publish anew"});
  };
  EXPECT_NO_THROW(checkpoint_of(published(), map));
  refused([](Manifest& m) { m.entries.erase(m.entries.begin()); }, "tensor own of map.json is not published");
  refused(
      [](Manifest& m) {
        m.entries[0] = entry_of("own", DType::kBF16, {6, 3}, 256);
      },
      "tensor own is bfloat16 [6, 3], but bfloat16 [3, 6] in map.json");
  refused([](Manifest& m) { m.entries[0].dtype = DType::kF16; }, "tensor own is float16");
  refused([](Manifest& m) { m.entries.push_back(entry_of("more", DType::kF32, {2}, 2048)); },
          "tensor more [2] is published, but map.json does not know it");
  Manifest turned = published();
  turned.entries[0].strides = {1, 3};
  expect_has(message_of([&] { checkpoint_of(turned, map); }), {"tensor own [3, 6] lies with strides [1, 3]"});
}

TEST(ExportMap, MustBeTheOneThatTheTrainerSays) {
  const ExportMap map = parse_export_map(sound().dump(), "map.json");
  Manifest manifest = published();
  EXPECT_EQ(published_map(manifest), map.key);
  EXPECT_NO_THROW(require_published_layout(manifest, std::nullopt, &map));
  manifest.layout = fmt::format("map:{}", std::string(64, 'b'));
  expect_has(message_of<UsageError>([&] { require_published_layout(manifest, std::nullopt, &map); }),
             {"trainer-0.json: was published with layout map:bbb", "map.json is map aaa",
              "let all trainers publish anew"});
  manifest.layout = "hf";
  expect_has(message_of<UsageError>([&] { require_published_layout(manifest, std::nullopt, &map); }),
             {"layout hf", "map.json is map aaa"});
  manifest.layout = fmt::format("map:../{}", std::string(61, 'a'));
  EXPECT_FALSE(published_map(manifest));
  expect_has(message_of([&] { require_published_layout(manifest, std::nullopt, nullptr); }),
             {"trainer-0.json: layout 'map:../a", "let the trainer publish anew"});
  manifest.layout = "";
  EXPECT_NO_THROW(require_published_layout(manifest, std::nullopt, &map));
}

TEST(PublishedLayouts, DataParallelAttentionIsNotPlainTensorParallelism) {
  Manifest engine;
  engine.path = "engine-0.json";
  engine.layout = "vllm:(attn:d4|ffn:e4)";
  EngineLayout layout = parse_engine_layout("attn_tp=1,attn_dp=4,ep=4", "triton");
  layout.engine = Engine::kVllm;
  EXPECT_NO_THROW(require_published_layout(engine, layout));
  layout.attention_dp = 2;
  expect_has(
      message_of<UsageError>([&] { require_published_layout(engine, layout); }),
      {"engine-0.json: was published with layout vllm:(attn:d4|ffn:e4), which --inference contradicts"});
  engine.layout = "vllm:t4e4";
  expect_has(message_of<UsageError>([&] { require_published_layout(engine, layout); }), {"contradicts"});
}

/// Two trainers that have every tensor in one of their own, the first its upper rows and the second the rest
/// turned to the end: a row of theirs is a row and a gap.
struct TwoTrainers {
  explicit TwoTrainers(const Family& family) {
    json text = {{"exports", 1}, {"key", std::string(64, 'c')}, {"made_for", {{"ranks", 2}}}};
    std::int64_t offset[2] = {0, 0};
    for (std::int64_t rank : {0, 1}) {
      manifests[rank].path = fmt::format("trainer-{}.json", rank);
      manifests[rank].rank = rank;
      text["ranks"][rank]["tensors"] = json::array();
    }
    for (std::uint32_t i = 0; i < family.catalog().size(); ++i) {
      const Tensor& tensor = family.catalog()[i];
      json shape = json::array();
      for (std::size_t d = 0; d < tensor.shape.dims(); ++d) shape.push_back(tensor.shape[d]);
      const std::string dtype(dtype_safetensors_name(tensor.dtype));
      text["tensors"].push_back({{"name", tensor.name}, {"dtype", dtype}, {"shape", shape}});
      const std::int64_t rows = tensor.shape.rows();
      const std::int64_t cols = tensor.shape.cols();
      const std::int64_t upper = rows > 1 ? rows / 2 : rows;
      for (std::int64_t rank : {0, 1}) {
        const std::int64_t own = rank == 0 ? upper : rows - upper;
        if (own == 0) continue;
        const std::string name = fmt::format("own.{}", i);
        text["ranks"][rank]["tensors"].push_back(
            {{"name", name},
             {"dtype", dtype},
             {"shape", {own, cols + 3}},
             {"boxes", {{i, rank == 0 ? 0 : upper, own, 0, cols, 3, cols + 3}}}});
        manifests[rank].entries.push_back(entry_of(name, tensor.dtype, {own, cols + 3}, offset[rank]));
        offset[rank] += own * (cols + 3) * dtype_bytes(tensor.dtype);
      }
    }
    for (std::int64_t rank : {0, 1}) manifests[rank].segments.emplace_back().bytes = offset[rank];
    map = parse_export_map(text.dump(), "map.json");
  }

  Manifest manifests[2];
  ExportMap map;
};

TEST(ExportMap, GivesAPlanWhatEachTrainerHasInItsMemory) {
  const auto family = family_of(tiny_moe());
  const Catalog& catalog = family->catalog();
  const TwoTrainers trainers(*family);
  Topology topology;
  topology.trainers = 2;
  topology.engine.tp = 2;
  std::vector<HeldWeights> held;
  for (const Manifest& manifest : trainers.manifests) {
    const Checkpoint checkpoint = checkpoint_of(manifest, trainers.map);
    const Binding binding = bind(*family, checkpoint);
    held.push_back(held_in_segments(manifest, checkpoint, binding.held, catalog, &trainers.map));
    std::vector<Holding>& holding = topology.holdings.emplace_back();
    for (const HeldBox& of : held.back().boxes()) holding.push_back({of.tensor, of.box});
  }
  const Plan plan = make_plan(*family, topology, Limits{});
  std::size_t found = 0;
  for (const Bucket& bucket : plan.buckets) {
    for (std::uint32_t i = 0; i < bucket.segments; ++i, ++found) {
      const Segment& segment = plan.segments[bucket.first_segment + i];
      const Tensor& tensor = catalog[segment.tensor];
      const std::int64_t upper = tensor.shape.rows() > 1 ? tensor.shape.rows() / 2 : 1;
      EXPECT_EQ(bucket.root, segment.box.row < upper ? 0 : 1) << tensor.name;
      const auto boxes = held[bucket.root].of(segment.tensor);
      ASSERT_EQ(boxes.size(), 1) << tensor.name;
      ASSERT_TRUE(boxes[0].box.contains(segment.box)) << tensor.name;
      const std::string name = fmt::format("own.{}", segment.tensor);
      const auto entry = std::ranges::find(trainers.manifests[bucket.root].entries, name, &LiveEntry::name);
      const std::int64_t element = dtype_bytes(tensor.dtype);
      const std::int64_t row = segment.box.row - (bucket.root == 0 ? 0 : upper);
      EXPECT_EQ(boxes[0].at(segment.box.row, segment.box.col, element),
                entry->offset + (row * (tensor.shape.cols() + 3) + 3 + segment.box.col) * element)
          << tensor.name;
    }
  }
  EXPECT_EQ(found, plan.segments.size());
}

}  // namespace

}  // namespace weightcast
