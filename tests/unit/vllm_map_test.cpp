#include <gtest/gtest.h>

#include <fmt/format.h>

#include <filesystem>
#include <map>
#include <set>
#include <utility>

#include "model_configs.hpp"

namespace weightcast {

namespace {

using nlohmann::json;

// tests/data/vllm: for a tiny model of each family where vLLM's own loader puts every row of every parameter.

std::string vllm_folder(const std::string& model) {
  return fmt::format("{}/vllm/{}", WEIGHTCAST_TEST_DATA, model);
}

std::unique_ptr<Family> vllm_family(const std::string& model) {
  const std::string path = vllm_folder(model) + "/config.json";
  return make_family(ModelConfig(text_of(path), path));
}

/// `tp2ep_rank1` as a layout and a rank in it.
std::pair<EngineLayout, std::int64_t> layout_of(const std::string& map) {
  EngineLayout layout;
  layout.engine = Engine::kVllm;
  layout.tp = map[2] - '0';
  if (map.find("ep_") != std::string::npos) layout.ep = layout.tp;
  const std::size_t rank = map.find("rank");
  return {layout, rank == std::string::npos ? 0 : map[rank + 4] - '0'};
}

/// A run of rows (of a vector: of elements) as the maps write it.
json run_of(const Catalog& catalog, const Part& part) {
  const Tensor& tensor = catalog[part.tensor];
  const Box& box = part.box;
  const bool vector = tensor.shape.dims() == 1;
  const std::int64_t first = vector ? box.col : box.row;
  const std::int64_t count = vector ? box.cols : box.rows;
  std::string from = fmt::format("{}[{}:{}]", tensor.name, first, first + count);
  if (!vector && box.cols != tensor.shape.cols()) {
    from += fmt::format("[:, {}:{}]", box.col, box.col + box.cols);
  }
  return json::array({from, count});
}

json runs_of(const Catalog& catalog, const Parameter& parameter) {
  std::map<std::int64_t, json> by_offset;
  for (const Part& part : parameter.parts) by_offset[part.offset] = run_of(catalog, part);
  const std::int64_t row_bytes = parameter.shape.cols() * dtype_bytes(parameter.dtype);
  for (const Padding& padding : parameter.padding) {
    by_offset[padding.offset] = json::array({"zero", padding.bytes / row_bytes});
  }
  json runs = json::array();
  for (const auto& [offset, run] : by_offset) runs.push_back(run);
  return runs;
}

/// The runs of all experts behind one another, where the map lists them expert by expert.
json flat(const json& rows) {
  if (rows.empty() || !rows[0][0].is_array()) return rows;
  json runs = json::array();
  for (const json& expert : rows) runs.insert(runs.end(), expert.begin(), expert.end());
  return runs;
}

class VllmMap : public ::testing::TestWithParam<const char*> {};

TEST_P(VllmMap, CatalogIsWhatTransformersWrites) {
  const auto family = vllm_family(GetParam());
  const json tensors = json::parse(text_of(vllm_folder(GetParam()) + "/tensors.json"));
  EXPECT_EQ(family->catalog().size(), tensors.size());
  for (const json& tensor : tensors) {
    const auto index = family->catalog().find(tensor["name"].get<std::string>());
    ASSERT_TRUE(index.has_value()) << tensor["name"];
    EXPECT_EQ(family->catalog()[*index].shape, Shape(tensor["shape"].get<std::vector<std::int64_t>>()));
    EXPECT_EQ(dtype_safetensors_name(family->catalog()[*index].dtype), tensor["dtype"]);
  }
}

TEST_P(VllmMap, EveryRowOfEveryParameterIsWhereTheEnginesLoaderPutsIt) {
  const auto family = vllm_family(GetParam());
  int maps = 0;
  for (const auto& entry : std::filesystem::directory_iterator(vllm_folder(GetParam()))) {
    const std::string file = entry.path().filename().string();
    if (!file.starts_with("map_")) continue;
    SCOPED_TRACE(file);
    ++maps;
    const auto [layout, rank] = layout_of(file.substr(4));
    const json map = json::parse(text_of(entry.path().string()));
    std::set<std::string> expected;
    for (const auto& [name, parameter] : map.items()) {
      if (parameter["dtype"] != "int32") expected.insert(name);
    }
    for (const Parameter& parameter : family->parameters(layout, engine_rank(layout, rank))) {
      ASSERT_EQ(expected.erase(parameter.name), 1u) << parameter.name;
      const json& found = map[parameter.name];
      EXPECT_EQ(Shape(found["shape"].get<std::vector<std::int64_t>>()), parameter.shape) << parameter.name;
      EXPECT_EQ(flat(found["rows"]), runs_of(family->catalog(), parameter)) << parameter.name;
    }
    EXPECT_TRUE(expected.empty()) << *expected.begin();
  }
  EXPECT_GE(maps, 3);
}

INSTANTIATE_TEST_SUITE_P(Families, VllmMap, ::testing::Values("llama", "qwen2", "qwen3", "qwen3-moe"));

TEST(Llama, BiasesWhereTheConfigHasThem) {
  json config = json::parse(text_of(vllm_folder("llama") + "/config.json"));
  config["attention_bias"] = true;
  config["mlp_bias"] = true;
  const auto family = family_of(config);
  const Catalog& catalog = family->catalog();
  EXPECT_EQ(catalog[catalog.at("model.layers.1.self_attn.o_proj.bias")].shape, (Shape{80}));
  EXPECT_EQ(catalog[catalog.at("model.layers.1.mlp.up_proj.bias")].shape, (Shape{152}));
  EngineLayout layout;
  layout.tp = 2;
  std::map<std::string, json> runs;
  for (const Parameter& parameter : family->parameters(layout, engine_rank(layout, 1))) {
    runs[parameter.name] = runs_of(catalog, parameter);
  }
  // A fused bias is cut as its weight is; one that is added after the sum over ranks is whole.
  EXPECT_EQ(runs["model.layers.1.mlp.gate_up_proj.bias"],
            json::parse(R"([["model.layers.1.mlp.gate_proj.bias[76:152]", 76],
                            ["model.layers.1.mlp.up_proj.bias[76:152]", 76]])"));
  EXPECT_EQ(runs["model.layers.1.mlp.down_proj.bias"],
            json::parse(R"([["model.layers.1.mlp.down_proj.bias[0:80]", 80]])"));
}

}  // namespace

}  // namespace weightcast
