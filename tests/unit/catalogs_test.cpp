// Catalogs of models of real sizes, against what transformers would write of them (tests/data/catalogs).

#include <gtest/gtest.h>

#include <fmt/format.h>

#include <filesystem>
#include <map>
#include <regex>
#include <string>
#include <tuple>
#include <vector>

#include "model/stored_names.hpp"
#include "model_configs.hpp"

namespace weightcast {

namespace {

using nlohmann::json;

/// Name without its numbers, type, shape.
using Pattern = std::tuple<std::string, std::string, std::vector<std::int64_t>>;

std::string without_numbers(const std::string& name) {
  static const std::regex layer(R"(\.(layers|blocks)\.\d+\.)");
  static const std::regex expert(R"(\.experts\.\d+\.)");
  return std::regex_replace(std::regex_replace(name, layer, ".$1.L."), expert, ".experts.E.");
}

class Catalogs : public ::testing::TestWithParam<std::string> {};

TEST_P(Catalogs, HaveTheTensorsThatTransformersWrites) {
  const std::string path = fmt::format("{}/catalogs/{}.json", WEIGHTCAST_TEST_DATA, GetParam());
  const json file = json::parse(text_of(path));
  json config = file["config"];
  config.erase("vision_config");
  const auto family = make_family(ModelConfig(config.dump(), path));
  std::map<Pattern, std::int64_t> expected;
  std::int64_t left_out = 0;
  std::int64_t bytes_left_out = 0;
  for (const json& entry : file["patterns"]) {
    const auto extents = entry[2].get<std::vector<std::int64_t>>();
    const auto count = entry[3].get<std::int64_t>();
    if (family->may_ignore(entry[0].get<std::string>())) {
      left_out += count;
      bytes_left_out += Shape(extents).elements() * count * 2;
    } else {
      expected[{canonical_name(entry[0].get<std::string>()), entry[1], extents}] += count;
    }
  }
  std::map<Pattern, std::int64_t> found;
  std::int64_t widened = 0;
  for (const Tensor& tensor : family->catalog().tensors()) {
    const auto extents = tensor.shape.extents();
    Pattern pattern(without_numbers(tensor.name), dtype_safetensors_name(tensor.dtype),
                    std::vector<std::int64_t>(extents.begin(), extents.end()));
    // transformers writes some of those that are float32 here in the model's own type.
    if (tensor.widened && !expected.contains(pattern)) {
      std::get<1>(pattern) = "BF16";
      widened += tensor.shape.elements() * 2;
    }
    ++found[pattern];
  }
  EXPECT_EQ(found, expected);
  EXPECT_EQ(std::ssize(family->catalog().tensors()) + left_out, file["tensors"].get<std::int64_t>());
  EXPECT_EQ(family->catalog().bytes() - widened + bytes_left_out, file["bytes"].get<std::int64_t>());
}

std::vector<std::string> all_catalogs() {
  std::vector<std::string> names;
  for (const auto& entry :
       std::filesystem::directory_iterator(fmt::format("{}/catalogs", WEIGHTCAST_TEST_DATA))) {
    names.push_back(entry.path().stem().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

INSTANTIATE_TEST_SUITE_P(RealSizes, Catalogs, ::testing::ValuesIn(all_catalogs()), [](const auto& model) {
  return std::regex_replace(model.param, std::regex(R"(\W)"), "_");
});

}  // namespace

}  // namespace weightcast
