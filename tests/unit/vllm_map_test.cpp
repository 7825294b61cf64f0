#include <gtest/gtest.h>

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <random>
#include <regex>
#include <set>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "emulated_update.hpp"
#include "model_configs.hpp"
#include "naive_model.hpp"
#include "plan/plan.hpp"

namespace weightcast {

namespace {

using nlohmann::json;

// tests/data/vllm: for a tiny model of each family where vLLM's own loader puts every row of every parameter;
// `-exp(ROWS)` where it computes, as its bytes have shown.

std::string vllm_folder(const std::string& model) {
  return fmt::format("{}/vllm/{}", WEIGHTCAST_TEST_DATA, model);
}

std::unique_ptr<Family> vllm_family(const std::string& model) {
  const std::string path = vllm_folder(model) + "/config.json";
  return make_family(ModelConfig(text_of(path), path));
}

/// Pseudo-random bytes for every tensor.
naive::Weights random_weights(const Catalog& catalog) {
  std::mt19937_64 random(18);
  naive::Weights weights;
  for (const Tensor& tensor : catalog.tensors()) {
    std::vector<std::byte>& bytes = weights[tensor.name];
    bytes.resize(static_cast<std::size_t>(tensor.bytes()));
    std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<std::byte>(random() >> 56); });
  }
  return weights;
}

/// `tp2ep_rank1` as a layout and a rank in it.
std::pair<EngineLayout, std::int64_t> layout_of(const std::string& map) {
  EngineLayout layout;
  layout.engine = Engine::kVllm;
  layout.tp = map[2] - '0';
  if (map.find("ep", 2) != std::string::npos) layout.ep = layout.tp;
  const std::size_t rank = map.find("rank");
  return {layout, rank == std::string::npos ? 0 : map[rank + 4] - '0'};
}

/// A file of a model's folder. What wraps a text model calls its tensors otherwise, as sources may do.
json file_of(const std::string& model, const std::string& file) {
  static const std::regex wrapped(R"(model\.language_model\.)");
  return json::parse(std::regex_replace(text_of(vllm_folder(model) + "/" + file), wrapped, "model."));
}

/// Whether a tensor has the matrices of all experts.
bool is_stacked(const Tensor& tensor) {
  return tensor.shape.dims() == 3 && tensor.shape[1] > 1;
}

/// A run of rows (of a vector: of elements) as the maps write it.
json run_of(const Catalog& catalog, const Part& part) {
  const Tensor& tensor = catalog[part.tensor];
  const Box& box = part.box;
  if (part.layout.transposed()) {
    const std::int64_t expert = box.row / tensor.shape[1];
    const std::int64_t row = box.row - expert * tensor.shape[1];
    std::string from = fmt::format("{}[{}].T[{}:{}]", tensor.name, expert, box.col, box.col + box.cols);
    if (box.rows != tensor.shape[1]) from += fmt::format("[:, {}:{}]", row, row + box.rows);
    return json::array({from, box.cols});
  }
  const bool vector = tensor.shape.dims() == 1;
  const bool stacked = is_stacked(tensor);
  const std::int64_t expert = stacked ? box.row / tensor.shape[1] : 0;
  const std::int64_t first = vector ? box.col : stacked ? box.row - expert * tensor.shape[1] : box.row;
  const std::int64_t count = vector ? box.cols : box.rows;
  const std::string of = stacked ? fmt::format("{}[{}]", tensor.name, expert) : tensor.name;
  std::string from = fmt::format("{}[{}:{}]", of, first, first + count);
  if (part.negated_exp) from = fmt::format("-exp({})", from);
  if (!vector && box.cols != tensor.shape.cols()) {
    from += fmt::format("[:, {}:{}]", box.col, box.col + box.cols);
  }
  return json::array({from, count});
}

bool follows(const Catalog& catalog, const Parameter& parameter, const Part& before, const Part& part) {
  if (before.tensor == part.tensor && catalog[part.tensor].shape.dims() == 1) {
    return before.box.col + before.box.cols == part.box.col &&
           before.offset + before.box.cols * dtype_bytes(parameter.dtype) == part.offset;
  }
  const Tensor& tensor = catalog[part.tensor];
  if (is_stacked(tensor) && before.box.row / tensor.shape[1] != part.box.row / tensor.shape[1]) return false;
  return before.tensor == part.tensor && before.box.col == part.box.col && before.box.cols == part.box.cols &&
         before.box.row + before.box.rows == part.box.row &&
         before.offset + before.box.rows * before.pitch == part.offset;
}

json runs_of(const Catalog& catalog, const Parameter& parameter) {
  std::map<std::int64_t, json> by_offset;
  const Part* before = nullptr;
  std::vector<Part> joined;
  for (const Part& part : parameter.parts) {
    // The maps say rows that follow on each other as one run.
    if (before != nullptr && follows(catalog, parameter, *before, part)) {
      const bool vector = catalog[part.tensor].shape.dims() == 1;
      (vector ? joined.back().box.cols : joined.back().box.rows) += vector ? part.box.cols : part.box.rows;
    } else {
      joined.push_back(part);
    }
    before = &part;
  }
  for (const Part& part : joined) by_offset[part.offset] = run_of(catalog, part);
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

/// −e^x of a float32, by the C library's function in double.
void append_negated_exp(const std::byte* value, std::vector<std::byte>& bytes) {
  float x = 0;
  std::memcpy(&x, value, sizeof x);
  const float made = std::isnan(x) ? std::numeric_limits<float>::quiet_NaN()
                                   : static_cast<float>(-std::exp(static_cast<double>(x)));
  const auto* const first = reinterpret_cast<const std::byte*>(&made);
  bytes.insert(bytes.end(), first, first + sizeof made);
}

/// What the loader makes of `weights`: its rows one behind the other, bfloat16 widened where the parameter is
/// float32.
std::vector<std::byte> loaded(const Catalog& catalog, const naive::Weights& weights, const json& parameter) {
  const std::regex from(
      R"((?:-exp\()?([^\[]+)(?:\[(\d+)\](\.T)?)?\[(\d+):(\d+)\](?:\[:, (\d+):(\d+)\])?\)?)");
  const bool wide = parameter["dtype"] == "float32";
  const auto element = static_cast<std::size_t>(wide ? 4 : 2);
  const Shape shape(parameter["shape"].get<std::vector<std::int64_t>>());
  std::vector<std::byte> bytes;
  for (const json& run : flat(parameter["rows"])) {
    if (run[0] == "zero") {
      const auto rows = run[1].get<std::size_t>();
      bytes.resize(bytes.size() + rows * static_cast<std::size_t>(shape.cols()) * element);
      continue;
    }
    std::smatch match;
    const auto text = run[0].get<std::string>();
    EXPECT_TRUE(std::regex_match(text, match, from)) << text;
    const Tensor& tensor = catalog[catalog.at(match[1].str())];
    const auto number = [&](std::size_t group) {
      return static_cast<std::size_t>(std::stoull(match[group].str()));
    };
    const auto stored = static_cast<std::size_t>(dtype_bytes(tensor.dtype));
    // Of an expert's matrix, transposed, or of the whole tensor.
    const bool turned = match[3].matched;
    const auto extent = [&](std::size_t dim) { return static_cast<std::size_t>(tensor.shape[dim]); };
    const std::size_t cols = tensor.shape.dims() == 1 ? 1
                             : turned                 ? extent(1)
                                                      : static_cast<std::size_t>(tensor.shape.cols());
    const std::size_t first = match[6].matched ? number(6) : 0;
    const std::size_t end = match[7].matched ? number(7) : cols;
    const std::size_t above = match[2].matched && !turned ? number(2) * extent(1) : 0;
    const std::vector<std::byte>& values = weights.at(tensor.name);
    for (std::size_t row = above + number(4); row < above + number(5); ++row) {
      for (std::size_t col = first; col < end; ++col) {
        const std::size_t at = turned ? (number(2) * cols + col) * extent(2) + row : row * cols + col;
        const std::byte* const value = values.data() + at * stored;
        if (text.starts_with("-exp(")) {
          append_negated_exp(value, bytes);
          continue;
        }
        if (stored < element) bytes.insert(bytes.end(), element - stored, std::byte{0});
        bytes.insert(bytes.end(), value, value + stored);
      }
    }
  }
  return bytes;
}

void expect_rows(const Catalog& catalog, const Parameter& parameter, const json& found) {
  EXPECT_EQ(Shape(found["shape"].get<std::vector<std::int64_t>>()), parameter.shape) << parameter.name;
  EXPECT_EQ(found["dtype"], dtype_name(parameter.dtype)) << parameter.name;
  EXPECT_EQ(flat(found["rows"]), runs_of(catalog, parameter)) << parameter.name;
}

class VllmMap : public ::testing::TestWithParam<const char*> {};

TEST_P(VllmMap, CatalogIsWhatTransformersWrites) {
  const auto family = vllm_family(GetParam());
  std::size_t left_out = 0;
  const json tensors = file_of(GetParam(), "tensors.json");
  for (const json& tensor : tensors) {
    if (family->may_ignore(tensor["name"].get<std::string>())) {
      ++left_out;
      continue;
    }
    const auto index = family->catalog().find(tensor["name"].get<std::string>());
    ASSERT_TRUE(index.has_value()) << tensor["name"];
    EXPECT_EQ(family->catalog()[*index].shape, Shape(tensor["shape"].get<std::vector<std::int64_t>>()));
    // What is float32 here in models of any type, transformers may write in the model's.
    const bool other = family->catalog()[*index].widened && tensor["dtype"] == "BF16";
    EXPECT_TRUE(other ||
                dtype_safetensors_name(family->catalog()[*index].dtype) == tensor["dtype"].get<std::string>())
        << tensor["name"];
  }
  EXPECT_EQ(family->catalog().size() + left_out, tensors.size());
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
    const json map = file_of(GetParam(), file);
    std::set<std::string> expected;
    for (const auto& [name, parameter] : map.items()) {
      if (parameter["dtype"] == "int32") continue;
      // What the loader has left unwritten, the family knows to be the engine's own.
      const bool written = flat(parameter["rows"])[0][0] != "nan";
      EXPECT_EQ(family->is_engines_own(name), !written) << name;
      if (written) expected.insert(name);
    }
    for (const Parameter& parameter : family->parameters(layout, engine_rank(layout, rank))) {
      ASSERT_EQ(expected.erase(parameter.name), 1u) << parameter.name;
      expect_rows(family->catalog(), parameter, map[parameter.name]);
    }
    EXPECT_TRUE(expected.empty()) << *expected.begin();
  }
  EXPECT_GE(maps, 3);
}

TEST_P(VllmMap, WithDataParallelAttentionEachProcessIsAnEngineOfItsOwnButForRoutedExperts) {
  const auto family = vllm_family(GetParam());
  const auto map_of = [](const std::string& layout, std::int64_t rank) {
    const std::string file =
        layout == "tp1" ? "map_tp1.json" : fmt::format("map_{}_rank{}.json", layout, rank);
    return std::filesystem::exists(vllm_folder(GetParam()) + "/" + file) ? file_of(GetParam(), file) : json();
  };
  int layouts = 0;
  // How all processes cut experts, and one process the rest.
  for (const auto& [all, own] : std::vector<std::pair<std::string, std::string>>{
           {"tp2ep", "tp1"}, {"tp2", "tp1"}, {"tp4", "tp1"}, {"tp4", "tp2"}}) {
    if (map_of(all, 0).is_null()) continue;
    SCOPED_TRACE(all + " of " + own);
    ++layouts;
    EngineLayout layout = layout_of(all).first;
    const std::int64_t size = own[2] - '0';
    layout.attention_dp = layout.tp / size;
    for (std::int64_t rank = 0; rank < layout.tp; ++rank) {
      const json experts = map_of(all, rank);
      const json rest = map_of(own, rank % size);
      std::size_t written = 0;
      for (const auto& [name, parameter] : rest.items()) {
        if (parameter["dtype"] != "int32" && flat(parameter["rows"])[0][0] != "nan") ++written;
      }
      for (const Parameter& parameter : family->parameters(layout, engine_rank(layout, rank))) {
        const bool routed = parameter.name.find(".experts.") != std::string::npos;
        expect_rows(family->catalog(), parameter, (routed ? experts : rest)[parameter.name]);
        --written;
      }
      EXPECT_EQ(written, 0u);
    }
  }
  EXPECT_GE(layouts, 1);
}

TEST_P(VllmMap, WithDataParallelAttentionSglangCutsMlpsAndTheHeadOverAllRanks) {
  const auto family = vllm_family(GetParam());
  const auto parameters = [&](const char* text, std::int64_t rank) {
    const EngineLayout layout = parse_engine_layout(text, "triton");
    std::map<std::string, std::pair<Shape, json>> found;
    for (const Parameter& parameter : family->parameters(layout, engine_rank(layout, rank)))
      found[parameter.name] = {parameter.shape, runs_of(family->catalog(), parameter)};
    return found;
  };
  // What no rank cuts is the same of both.
  const std::regex over_all(R"(\.(experts\.|gate_up_proj|up_proj|down_proj)|lm_head)");
  const auto compare = [&](const char* together, const char* alone, const char* text, std::int64_t size) {
    SCOPED_TRACE(text);
    const EngineLayout layout = parse_engine_layout(text, "triton");
    for (std::int64_t rank = 0; rank < layout.tp; ++rank) {
      const auto all = parameters(together, rank);
      const auto own = parameters(alone, rank % size);
      const auto found = parameters(text, rank);
      EXPECT_EQ(found.size(), own.size());
      for (const auto& [name, parameter] : found) {
        EXPECT_EQ(parameter, (std::regex_search(name, over_all) ? all : own).at(name))
            << name << " of " << rank;
      }
    }
  };
  compare("tp=2,ep=2", "tp=1", "attn_tp=1,attn_dp=2,ep=2", 1);
  try {
    compare("tp=4,ep=2", "tp=2", "attn_tp=2,attn_dp=2,ep=2", 2);
  } catch (const UsageError&) {
    // Six heads, or two groups of them.
  }
}

TEST_P(VllmMap, AnUpdateWritesTheBytesThatTheEnginesLoaderWrites) {
  const auto family = vllm_family(GetParam());
  const Catalog& catalog = family->catalog();
  const naive::Weights weights = random_weights(catalog);
  std::set<std::string> layouts;
  for (const auto& entry : std::filesystem::directory_iterator(vllm_folder(GetParam()))) {
    const std::string file = entry.path().stem().string();
    if (file.starts_with("map_")) layouts.insert(file.substr(4, file.find("_rank") - 4));
  }
  EXPECT_GE(layouts.size(), 2u);
  for (const std::string& name : layouts) {
    SCOPED_TRACE(name);
    Topology topology;
    topology.trainers = 2;
    topology.engine = layout_of(name).first;
    Limits limits;
    limits.bucket_bytes = Limits::kLeastBucketBytes;
    const Plan plan = make_plan(*family, topology, limits);
    const std::vector<EmulatedRank> ranks = emulate_update(plan, *family, weights);
    for (std::int64_t rank = 0; rank < topology.engine.tp; ++rank) {
      const std::string of_rank = topology.engine.tp == 1 ? "" : fmt::format("_rank{}", rank);
      const json map = file_of(GetParam(), fmt::format("map_{}{}.json", name, of_rank));
      const EmulatedRank& held = ranks.at(static_cast<std::size_t>(topology.trainers + rank));
      for (std::size_t i = 0; i < held.parameters.size(); ++i) {
        const std::string& parameter = held.rank_plan.parameters[i].name;
        EXPECT_TRUE(held.parameters[i] == loaded(catalog, weights, map[parameter]))
            << parameter << " of " << rank;
      }
    }
  }
}

TEST_P(VllmMap, UpdatesOfLayoutsWithoutAMapAreWholeToo) {
  const auto family = vllm_family(GetParam());
  const naive::Weights weights = random_weights(family->catalog());
  int accepted = 0;
  for (const Engine engine : {Engine::kVllm, Engine::kSglang}) {
    for (const char* text : {"tp=1,pp=2", "tp=2,ep=2,pp=2", "tp=2,replicas=2", "tp=4,ep=2", "tp=3,pp=3",
                             "attn_tp=1,attn_dp=2,ep=2", "attn_tp=2,attn_dp=2,ep=2,pp=2"}) {
      for (const SourceSplit split : {SourceSplit::kCatalog, SourceSplit::kRow, SourceSplit::kExpert}) {
        SCOPED_TRACE(fmt::format("{} {} {}", engine_name(engine), text, static_cast<int>(split)));
        Topology topology;
        topology.engine = parse_engine_layout(text, "triton");
        topology.engine.engine = engine;
        topology.trainers = 3;
        topology.source_split = split;
        Limits limits;
        limits.bucket_bytes = Limits::kLeastBucketBytes;
        try {
          // It proves itself that each byte of a parameter is written once, and compares digests.
          emulate_update(make_plan(*family, topology, limits), *family, weights);
          ++accepted;
        } catch (const UsageError&) {
          // Layers, heads or experts that cannot be divided so.
        }
      }
    }
  }
  EXPECT_GE(accepted, 6);
}

INSTANTIATE_TEST_SUITE_P(Families, VllmMap,
                         ::testing::Values("deepseek-v3", "deepseek-v3-noqlora", "deepseek-v32",
                                           "gemma4-dense", "gemma4-moe", "gemma4-ple", "glm-moe-dsa", "glm4",
                                           "glm4-moe", "glm4-moe-lite", "gpt-oss", "llama", "minimax-m2",
                                           "mistral", "nemotron-h", "qwen2", "qwen2-moe", "qwen3",
                                           "qwen3-moe", "qwen3-next", "qwen3.5", "qwen3.5-moe",
                                           "qwen3.5-vl"));

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
