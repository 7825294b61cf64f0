#include <gtest/gtest.h>

#include <fmt/format.h>

#include <string>
#include <vector>

#include "core/text.hpp"
#include "model/landing/landing_map.hpp"
#include "model_configs.hpp"
#include "support/landing_json.hpp"

namespace weightcast {

namespace {

using nlohmann::json;

/// A sound map: qwen3-moe, tp=2, ep=2.
json sound() {
  static const json map = [] {
    const std::string path = fmt::format("{}/vllm/qwen3-moe/config.json", WEIGHTCAST_TEST_DATA);
    EngineLayout layout;
    layout.engine = Engine::kVllm;
    layout.tp = 2;
    layout.ep = 2;
    json result = landing_json(*family_of(json::parse(text_of(path))), layout);
    result["ranks"][1]["left"] =
        json::array({{{"name", "own.table"}, {"shape", {6}}, {"dtype", "int32"}, {"why", "the engine's"}}});
    return result;
  }();
  return map;
}

struct Mutant {
  const char* name;
  std::function<void(json&)> change;
  std::vector<std::string> words;  ///< of the one line that refuses it
};

json& parameter(json& map, std::size_t number) {
  return map["ranks"][1]["parameters"][number];
}

/// The embedding of rank 1: rows 192..330 and 54 rows of zeros.
json& embedding(json& map) {
  return parameter(map, 0);
}

json repeated(const json& value, int times) {
  json list = value;
  for (int i = 0; i < times; ++i) list = json::array({list});
  return list;
}

constexpr std::int64_t kHuge = std::int64_t{1} << 62;

const std::vector<Mutant>& mutants() {
  static const std::vector<Mutant> all{
      // Sums of a rank's bytes must not overflow: 2^11 parameters of 2^53 bytes are 2^64.
      {"parameters_beyond_all_memory",
       [](json& m) {
         for (int i = 0; i < 2048; ++i) {
           m["ranks"][1]["parameters"].push_back({{"name", fmt::format("huge.{}", i)},
                                                  {"dtype", "F64"},
                                                  {"shape", {std::int64_t{1} << 50}},
                                                  {"zero", {{0, 1, 0, std::int64_t{1} << 50}}}});
         }
       },
       {"rank 1: the parameters", "no model has more than"}},
      {"boxes_without_end",
       [](json& m) {
         json& parts = embedding(m)["parts"];
         const json first = parts[0];
         for (int i = 0; i <= 1 << 17; ++i) parts.push_back(first);
       },
       {"'parts'", "more than 131072 boxes"}},
      {"no_format", [](json& m) { m.erase("landing"); }, {"'landing' is missing"}},
      {"other_format", [](json& m) { m["landing"] = 2; }, {"'landing'", "another format"}},
      {"format_text", [](json& m) { m["landing"] = "1"; }, {"'landing'", "no whole number"}},
      {"no_engine", [](json& m) { m.erase("engine"); }, {"'engine' is missing"}},
      {"unknown_engine", [](json& m) { m["engine"] = "tgi"; }, {"'engine'", "neither vllm nor sglang"}},
      {"hf_engine", [](json& m) { m["engine"] = "hf"; }, {"'engine'"}},
      {"engine_number", [](json& m) { m["engine"] = 7; }, {"'engine' is no text"}},
      {"no_version", [](json& m) { m.erase("engine_version"); }, {"'engine_version'"}},
      {"version_with_escape",
       [](json& m) { m["engine_version"] = "0.\x1b[2J"; },
       {"'engine_version'", "\\x1b"}},
      {"no_key", [](json& m) { m.erase("key"); }, {"'key' is missing"}},
      {"short_key", [](json& m) { m["key"] = "abc"; }, {"'key'", "SHA-256"}},
      {"key_of_other_digits", [](json& m) { m["key"] = std::string(64, 'x'); }, {"'key'"}},
      {"no_made_for", [](json& m) { m.erase("made_for"); }, {"'made_for' is missing"}},
      {"made_for_list", [](json& m) { m["made_for"] = json::array(); }, {"'made_for'", "no object"}},
      {"made_for_other_tp", [](json& m) { m["made_for"]["tp"] = 4; }, {"'made_for'", "'tp'"}},
      {"made_for_other_engine", [](json& m) { m["made_for"]["engine"] = "sglang"; }, {"'engine'"}},
      {"made_for_other_version",
       [](json& m) { m["made_for"]["engine_version"] = "9"; },
       {"'engine_version'"}},
      {"no_architecture", [](json& m) { m["made_for"].erase("architecture"); }, {"'architecture'"}},
      {"no_layout", [](json& m) { m.erase("layout"); }, {"'layout' is missing"}},
      {"layout_zero", [](json& m) { m["layout"]["tp"] = 0; }, {"'layout'", "'tp'"}},
      {"layout_huge", [](json& m) { m["layout"]["pp"] = kHuge; }, {"'layout'", "'pp'", "too large"}},
      {"layout_ep", [](json& m) { m["layout"]["ep"] = 3; }, {"'ep'", "divide"}},
      {"layout_fraction", [](json& m) { m["layout"]["tp"] = 2.5; }, {"'tp'"}},
      {"layout_of_other_ranks",
       [](json& m) { m["layout"]["pp"] = m["made_for"]["pp"] = 2; },
       {"'ranks' are 2", "makes 4"}},
      {"stage_layers_text", [](json& m) { m["made_for"]["stage_layers"] = "1,1"; }, {"'stage_layers'"}},
      {"no_tensors", [](json& m) { m.erase("tensors"); }, {"'tensors' is missing"}},
      {"tensors_object", [](json& m) { m["tensors"] = json::object(); }, {"'tensors' is no list"}},
      {"tensor_number", [](json& m) { m["tensors"][3] = 3; }, {"tensor number 3", "no object"}},
      {"tensor_twice", [](json& m) { m["tensors"][3] = m["tensors"][2]; }, {"is there twice"}},
      {"tensor_without_name", [](json& m) { m["tensors"][3].erase("name"); }, {"tensor number 3", "'name'"}},
      {"tensor_of_unknown_type", [](json& m) { m["tensors"][3]["dtype"] = "BF17"; }, {"'dtype'", "BF17"}},
      {"tensor_of_six_dims",
       [](json& m) { m["tensors"][3]["shape"] = {1, 1, 1, 1, 1, 80}; },
       {"'shape'", "6 dimensions"}},
      {"tensor_of_no_elements",
       [](json& m) {
         m["tensors"][3]["shape"] = {0, 80};
       },
       {"'shape'"}},
      {"tensor_negative",
       [](json& m) {
         m["tensors"][3]["shape"] = {-1, 80};
       },
       {"'shape'"}},
      {"tensor_huge",
       [](json& m) {
         m["tensors"][3]["shape"] = {kHuge, kHuge};
       },
       {"'shape'"}},
      {"tensor_wraps",
       [](json& m) {
         m["tensors"][3]["shape"] = {std::int64_t{1} << 32, std::int64_t{1} << 32};
       },
       {"'shape'", "too many"}},
      {"tensor_2_63", [](json& m) { m["tensors"][3]["shape"] = {std::uint64_t{1} << 63}; }, {"'shape'"}},
      {"tensor_name_with_nul",
       [](json& m) { m["tensors"][3]["name"] = std::string("a\0b", 3); },
       {"'name'", "printed"}},
      {"tensor_name_empty", [](json& m) { m["tensors"][3]["name"] = ""; }, {"'name'", "empty"}},
      {"tensor_name_long", [](json& m) { m["tensors"][3]["name"] = std::string(5000, 'x'); }, {"'name'"}},
      {"tensor_name_turning", [](json& m) { m["tensors"][3]["name"] = "a\u202eb"; }, {"'name'", "u202e"}},
      {"no_ranks", [](json& m) { m.erase("ranks"); }, {"'ranks' is missing"}},
      {"one_rank", [](json& m) { m["ranks"].erase(1); }, {"'ranks' are 1"}},
      {"rank_text", [](json& m) { m["ranks"][1] = "rank"; }, {"rank 1", "no object"}},
      {"no_parameters", [](json& m) { m["ranks"][1].erase("parameters"); }, {"rank 1", "'parameters'"}},
      {"parameter_list", [](json& m) { parameter(m, 2) = json::array(); }, {"rank 1", "parameter number 2"}},
      {"parameter_twice",
       [](json& m) { parameter(m, 2)["name"] = parameter(m, 3)["name"]; },
       {"rank 1", "which another one has"}},
      {"alias_of_another",
       [](json& m) { parameter(m, 2)["aliases"] = json::array({parameter(m, 3)["name"]}); },
       {"rank 1", "which another one has"}},
      {"alias_number", [](json& m) { parameter(m, 2)["aliases"] = {7}; }, {"'aliases'"}},
      {"parameter_name_lines", [](json& m) { parameter(m, 2)["name"] = "a\nb"; }, {"'name'", "a\\nb"}},
      {"parameter_unknown_type", [](json& m) { parameter(m, 2)["dtype"] = "bfloat16"; }, {"'dtype'"}},
      {"parameter_huge",
       [](json& m) {
         parameter(m, 2)["shape"] = {kHuge, 2};
       },
       {"'shape'"}},
      {"parts_object", [](json& m) { parameter(m, 2)["parts"] = json::object(); }, {"'parts' is no list"}},
      {"part_of_six", [](json& m) { parameter(m, 2)["parts"][0].erase(6); }, {"'parts'", "7 whole numbers"}},
      {"part_of_texts",
       [](json& m) { parameter(m, 2)["parts"][0][1] = "0"; },
       {"'parts'", "7 whole numbers"}},
      {"part_negative", [](json& m) { parameter(m, 2)["parts"][0][1] = -1; }, {"'parts'"}},
      {"part_2_63", [](json& m) { parameter(m, 2)["parts"][0][2] = std::uint64_t{1} << 63; }, {"'parts'"}},
      {"part_huge", [](json& m) { parameter(m, 2)["parts"][0][2] = kHuge; }, {"no such box"}},
      {"part_wraps",
       [](json& m) {
         parameter(m, 2)["parts"][0][1] = INT64_MAX;
         parameter(m, 2)["parts"][0][2] = INT64_MAX;
       },
       {"no such box"}},
      {"part_of_no_tensor",
       [](json& m) { parameter(m, 2)["parts"][0][0] = 100000; },
       {"'parts'", "no number"}},
      {"part_of_tensor_2_40",
       [](json& m) { parameter(m, 2)["parts"][0][0] = std::int64_t{1} << 40; },
       {"'parts'", "no number"}},
      {"part_of_no_rows", [](json& m) { parameter(m, 2)["parts"][0][2] = 0; }, {"no such box"}},
      {"part_beyond_tensor",
       [](json& m) { embedding(m)["parts"][0][1] = 193; },
       {"embed_tokens", "no such box"}},
      {"part_beyond_parameter",
       [](json& m) { embedding(m)["parts"][0][5] = 55; },
       {"rank 1", "embed_tokens", "the parameter", "no such box"}},
      {"part_to_huge", [](json& m) { embedding(m)["parts"][0][6] = INT64_MAX; }, {"no such box"}},
      {"turned_beyond",
       [](json& m) {
         embedding(m)["turned"] = embedding(m)["parts"];
         embedding(m).erase("parts");
       },
       {"no such box"}},
      {"overlap",
       [](json& m) {
         embedding(m)["parts"].push_back({embedding(m)["parts"][0][0], 0, 1, 0, 1, 5, 5});
       },
       {"rank 1", "embed_tokens", "in common", "rows 5..6, columns 5..6"}},
      {"zero_over_part",
       [](json& m) {
         embedding(m)["zero"][0] = {137, 55, 0, 80};
       },
       {"in common"}},
      {"gap_of_a_row",
       [](json& m) {
         embedding(m)["zero"][0] = {139, 53, 0, 80};
       },
       {"rank 1", "embed_tokens", "row 138, column 0"}},
      {"gap_of_an_element",
       [](json& m) {
         embedding(m)["zero"] = {{138, 53, 0, 80}, {191, 1, 0, 79}};
       },
       {"row 191, column 79"}},
      {"nothing_of_a_parameter", [](json& m) { parameter(m, 2).erase("parts"); }, {"row 0, column 0"}},
      {"zero_of_three", [](json& m) { embedding(m)["zero"][0].erase(3); }, {"'zero'", "4 whole numbers"}},
      {"zero_beyond", [](json& m) { embedding(m)["zero"][0][1] = 55; }, {"no such box"}},
      {"other_type", [](json& m) { parameter(m, 2)["dtype"] = "F16"; }, {"F16", "BF16", "loader"}},
      {"two_types",
       [](json& m) {
         for (json& one : m["ranks"][1]["parameters"]) {
           if (one["name"] == "model.norm.weight") one["dtype"] = "F32";
         }
       },
       {"model.norm.weight", "BF16", "F32"}},
      {"left_of_a_parameter_without_boxes",
       [](json& m) { m["ranks"][1]["left"][0]["name"] = parameter(m, 2)["name"]; },
       {"'boxes'"}},
      {"left_over_a_part",
       [](json& m) {
         m["ranks"][1]["left"][0]["name"] = parameter(m, 2)["name"];
         m["ranks"][1]["left"][0]["boxes"] = {{0, 1, 0, 1}};
       },
       {"in common"}},
      {"left_twice",
       [](json& m) { m["ranks"][1]["left"].push_back(m["ranks"][1]["left"][0]); },
       {"own.table", "another one has"}},
      {"left_text", [](json& m) { m["ranks"][1]["left"] = "all"; }, {"'left' is no list"}},
      {"read_and_skipped",
       [](json& m) { m["ranks"][1]["skipped"].push_back(embedding(m)["parts"][0][0]); },
       {"rank 1", "embed_tokens", "not just one"}},
      {"neither_read_nor_skipped",
       [](json& m) { m["ranks"][1]["skipped"].erase(0); },
       {"rank 1", "neither read nor skipped"}},
      {"skipped_beyond", [](json& m) { m["ranks"][1]["skipped"].push_back(9999); }, {"'skipped'"}},
      {"skipped_text", [](json& m) { m["ranks"][1]["skipped"].push_back("3"); }, {"'skipped'"}},
      {"loader_without_tensor",
       [](json& m) {
         m["ranks"][1]["loader"] = json::array({{{"why", "computes"}}});
       },
       {"'loader'", "'tensor' is missing"}},
      {"loader_without_why",
       [](json& m) {
         m["ranks"][1]["loader"] = json::array({{{"tensor", 0}}});
       },
       {"'loader'", "'why' is missing"}},
      {"loader_of_a_read_tensor",
       [](json& m) {
         m["ranks"][1]["loader"] =
             json::array({{{"tensor", embedding(m)["parts"][0][0]}, {"why", "computes"}}});
       },
       {"embed_tokens", "not just one"}},
      {"experts_of_a_vector", [](json& m) { parameter(m, 2)["experts"] = "w13"; }, {"'experts'"}},
      {"unknown_experts",
       [](json& m) {
         for (json& one : m["ranks"][1]["parameters"]) {
           if (one.contains("experts")) one["experts"] = "w1";
         }
       },
       {"'experts'"}},
      {"deep", [](json& m) { m["ranks"][1]["parameters"] = repeated(1, 500); }, {"nested"}},
      {"deep_part", [](json& m) { parameter(m, 2)["parts"][0][3] = repeated(1, 8); }, {"'parts'"}},
  };
  return all;
}

/// The line must be one, for a terminal, name the file and have the words.
void expect_line(const std::string& line, const std::vector<std::string>& words) {
  EXPECT_TRUE(line.starts_with("wrong.json: ")) << line;
  EXPECT_EQ(printable(line), line);
  EXPECT_LT(line.size(), 700u) << line;
  for (const std::string& word : words) EXPECT_NE(line.find(word), std::string::npos) << word << ": " << line;
}

class WrongMap : public ::testing::TestWithParam<Mutant> {};

TEST_P(WrongMap, IsRefusedInOneLine) {
  json map = sound();
  GetParam().change(map);
  const std::string text = map.dump();
  expect_line(message_of([&] { parse_landing_map(text, "wrong.json"); }), GetParam().words);
}

INSTANTIATE_TEST_SUITE_P(All, WrongMap, ::testing::ValuesIn(mutants()),
                         [](const auto& mutant) { return std::string(mutant.param.name); });

TEST(WrongMapText, IsRefusedInOneLine) {
  EXPECT_NO_THROW(parse_landing_map(sound().dump(), "sound.json"));
  const std::string text = sound().dump();
  // Cut off anywhere, in a few hundred places.
  for (std::size_t end = 0; end < text.size(); end += text.size() / 300 + 1) {
    expect_line(message_of([&] { parse_landing_map(text.substr(0, end), "wrong.json"); }), {});
  }
  for (const std::string& other : {std::string("null"), std::string("[]"), std::string(1000, '['),
                                   std::string("\xff\xfe{"), std::string("{\"landing\": 1e999}")}) {
    expect_line(message_of([&] { parse_landing_map(other, "wrong.json"); }), {});
  }
  std::string twice = text;
  twice.insert(1, "\"landing\":1,");
  expect_line(message_of([&] { parse_landing_map(twice, "wrong.json"); }), {"'landing' occurs twice"});
  std::string nul = text;
  nul[nul.size() / 2] = '\0';
  expect_line(message_of([&] { parse_landing_map(nul, "wrong.json"); }), {"byte 0"});
}

TEST(WrongMapText, ATensorIsNotCutIntoMorePiecesThanCanBePlanned) {
  // Single elements along a diagonal: the edges of all make a grid.
  constexpr std::int64_t kElements = 4000;
  json map = sound();
  map["layout"] = {{"tp", 1}, {"pp", 1}, {"ep", 1}};
  for (const char* size : {"tp", "pp", "ep"}) map["made_for"][size] = 1;
  map["tensors"] = {{{"name", "t"}, {"dtype", "BF16"}, {"shape", {kElements, kElements}}}};
  json parts = json::array();
  for (std::int64_t i = 0; i < kElements; ++i) parts.push_back({0, i, 1, i, 1, 0, i});
  map["ranks"] = {
      {{"parameters", {{{"name", "p"}, {"dtype", "BF16"}, {"shape", {kElements}}, {"parts", parts}}}}}};
  const std::string text = map.dump();
  expect_line(message_of([&] { parse_landing_map(text, "wrong.json"); }), {"tensor t", "too many pieces"});
}

}  // namespace

}  // namespace weightcast
