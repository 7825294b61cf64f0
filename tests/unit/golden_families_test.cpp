#include <gtest/gtest.h>

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "core/float_bits.hpp"
#include "emulated_update.hpp"
#include "model_configs.hpp"
#include "plan/plan.hpp"

// Vectors of engines' own loaders against whole families: from a config to what an update leaves in a rank's
// parameters, with everything between in the product's own hands.
namespace weightcast {

namespace {

using nlohmann::json;
using Rows = std::vector<std::int64_t>;

json golden(const std::string& name) {
  return json::parse(text_of(fmt::format("{}/golden/{}.json", WEIGHTCAST_TEST_DATA, name)));
}

json config_of(const std::string& model) {
  return json::parse(text_of(fmt::format("{}/vllm/{}/config.json", WEIGHTCAST_TEST_DATA, model)));
}

/// Weights in which each element is the number of its row, modulo 256, which bfloat16 has.
naive::Weights numbered_rows(const Catalog& catalog) {
  naive::Weights weights;
  for (const Tensor& tensor : catalog.tensors()) {
    std::vector<std::byte>& bytes = weights[tensor.name];
    bytes.resize(static_cast<std::size_t>(tensor.bytes()));
    if (tensor.dtype != DType::kBF16) continue;
    for (std::int64_t i = 0; i < tensor.shape.elements(); ++i) {
      const std::uint16_t bits = bf16_bits(static_cast<float>(i / tensor.shape.cols() % 256));
      std::memcpy(bytes.data() + 2 * i, &bits, 2);
    }
  }
  return weights;
}

/// The numbers in the first column of a parameter [rows, …, cols] of bfloat16, all of whose columns have
/// them.
Rows rows_of(const EmulatedRank& rank, const std::string& name) {
  const auto& parameters = rank.rank_plan.parameters;
  const auto found = std::ranges::find(parameters, name, &Parameter::name);
  if (found == parameters.end()) {
    ADD_FAILURE() << name << " is missing";
    return {};
  }
  const std::vector<std::byte>& bytes =
      rank.parameters.at(static_cast<std::size_t>(found - parameters.begin()));
  Rows rows;
  for (std::int64_t i = 0; i < found->shape.elements(); ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, bytes.data() + 2 * i, 2);
    const auto number = static_cast<std::int64_t>(bf16_value(bits));
    if (i % found->shape.cols() == 0) {
      rows.push_back(number);
    } else {
      EXPECT_EQ(number, rows.back()) << name << ", element " << i;
    }
  }
  return rows;
}

TEST(GoldenFamilies, LinearAttentionOfQwen3NextIsThatOfSglangsLoader) {
  const json vectors = golden("qwen3next_gdn_tp");
  const json& sizes = vectors["meta"]["config"];
  json config = config_of("qwen3-next");
  config["linear_num_key_heads"] = sizes["num_k_heads"];
  config["linear_num_value_heads"] = sizes["num_v_heads"];
  config["linear_key_head_dim"] = sizes["head_k_dim"];
  config["linear_value_head_dim"] = sizes["head_v_dim"];
  config["linear_conv_kernel_dim"] = sizes["conv_kernel"];
  const auto family = family_of(config);
  const naive::Weights weights = numbered_rows(family->catalog());
  std::map<std::int64_t, std::vector<EmulatedRank>> ranks_of_tp;
  constexpr std::int64_t kTrainers = 2;
  for (const json& one : vectors["cases"]) {
    const std::int64_t tp = one["tp"];
    if (!ranks_of_tp.contains(tp)) {
      Topology topology;
      topology.trainers = kTrainers;
      topology.engine.tp = tp;
      Limits limits;
      limits.bucket_bytes = Limits::kLeastBucketBytes;
      ranks_of_tp[tp] = emulate_update(make_plan(*family, topology, limits), *family, weights);
    }
    const EmulatedRank& rank =
        ranks_of_tp[tp].at(static_cast<std::size_t>(kTrainers + one["rank"].get<std::int64_t>()));
    for (const std::string name : {"in_proj_qkvz", "in_proj_ba", "conv1d"}) {
      EXPECT_EQ(rows_of(rank, "model.layers.0.linear_attn." + name + ".weight"),
                one[name + "_rows"].get<Rows>())
          << name << " of " << one["rank"] << " of " << tp;
    }
  }
  EXPECT_EQ(ranks_of_tp.size(), 3U);
}

}  // namespace

}  // namespace weightcast
