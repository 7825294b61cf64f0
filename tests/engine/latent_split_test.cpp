// What an engine makes of the `kv_b_proj` that an update has brought, against what SGLang makes of it.

#include "engine/blocks/latent_split.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/float_bits.hpp"
#include "emulated_update.hpp"
#include "engine/files.hpp"
#include "model/config.hpp"
#include "model/family.hpp"
#include "plan/plan.hpp"

namespace weightcast::engine {
namespace {

using nlohmann::json;

json read_json(const std::string& path) {
  return json::parse(read_text(fmt::format("{}/{}", WEIGHTCAST_TEST_DATA, path)));
}

/// Weights in which each element is its own number, modulo 256, which bfloat16 has.
naive::Weights numbered(const Catalog& catalog) {
  naive::Weights weights;
  for (const weightcast::Tensor& tensor : catalog.tensors()) {
    std::vector<std::byte>& bytes = weights[tensor.name];
    bytes.resize(static_cast<std::size_t>(tensor.bytes()));
    if (tensor.dtype != DType::kBF16) continue;
    for (std::int64_t i = 0; i < tensor.shape.elements(); ++i) {
      const std::uint16_t bits = bf16_bits(static_cast<float>(i % 256));
      std::memcpy(bytes.data() + 2 * i, &bits, 2);
    }
  }
  return weights;
}

/// A rank's parameter [rows, cols] of bfloat16.
Matrix matrix_of(const EmulatedRank& rank, const std::string& name) {
  const auto& parameters = rank.rank_plan.parameters;
  const auto found = std::ranges::find(parameters, name, &Parameter::name);
  if (found == parameters.end()) {
    ADD_FAILURE() << name << " is missing";
    return {};
  }
  Matrix matrix(found->shape.rows(), found->shape.cols());
  const std::vector<std::byte>& bytes =
      rank.parameters.at(static_cast<std::size_t>(found - parameters.begin()));
  for (std::size_t i = 0; i < matrix.values.size(); ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, bytes.data() + 2 * i, 2);
    matrix.values[i] = bf16_value(bits);
  }
  return matrix;
}

/// The storage of SGLang's tensor: matrix behind matrix.
void append(const Matrix& matrix, std::vector<std::int64_t>& storage) {
  for (const float value : matrix.values) storage.push_back(static_cast<std::int64_t>(value));
}

TEST(LatentSplit, OfWhatArrivesIsThatOfSglang) {
  const json vectors = read_json("golden/mla_kv_b_split.json");
  const std::int64_t nope = vectors["qk_nope"];
  const std::int64_t value = vectors["v"];
  json config = read_json("vllm/deepseek-v3/config.json");
  config["num_attention_heads"] = config["num_key_value_heads"] = vectors["heads"];
  config["qk_nope_head_dim"] = nope;
  config["v_head_dim"] = value;
  config["kv_lora_rank"] = vectors["kv_lora"];
  const auto family = make_family(weightcast::ModelConfig(config.dump(), "config.json"));
  const naive::Weights weights = numbered(family->catalog());
  for (const std::int64_t tp : {1, 2}) {
    Topology topology;
    topology.engine.tp = tp;
    Limits limits;
    limits.bucket_bytes = Limits::kLeastBucketBytes;
    const auto ranks = emulate_update(make_plan(*family, topology, limits), *family, weights);
    // The ranks' heads one behind the other are all heads.
    std::vector<std::int64_t> keys;
    std::vector<std::int64_t> values;
    for (std::size_t rank = 1; rank < ranks.size(); ++rank) {
      const LatentSplit split =
          split_latent(matrix_of(ranks[rank], "model.layers.1.self_attn.kv_b_proj.weight"), nope, value);
      EXPECT_EQ(static_cast<std::int64_t>(split.keys.size()), vectors["heads"].get<std::int64_t>() / tp);
      for (const Matrix& head : split.keys) append(head, keys);
      for (const Matrix& head : split.values) append(head, values);
    }
    EXPECT_EQ(keys, vectors["w_kc"]["storage"].get<std::vector<std::int64_t>>()) << "tp " << tp;
    EXPECT_EQ(values, vectors["w_vc"]["storage"].get<std::vector<std::int64_t>>()) << "tp " << tp;
  }
}

}  // namespace
}  // namespace weightcast::engine
