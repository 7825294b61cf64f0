// gpt-oss in MXFP4, from a config to what an update leaves in the parameters of every rank, against the
// formulas of its engines' loaders, element by element, and against vectors of SGLang's own functions.

#include <gtest/gtest.h>

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "emulated_update.hpp"
#include "model_configs.hpp"
#include "plan/plan.hpp"
#include "source/binding.hpp"

namespace weightcast {

namespace {

using nlohmann::json;
using Bytes = std::vector<std::uint8_t>;

constexpr const char* kExperts = "model.layers.1.mlp.experts.";

json config_of(std::int64_t hidden, std::int64_t inner, std::int64_t experts) {
  json config = json::parse(text_of(fmt::format("{}/vllm/gpt-oss/config.json", WEIGHTCAST_TEST_DATA)));
  config["hidden_size"] = hidden;
  config["intermediate_size"] = inner;
  config["num_local_experts"] = experts;
  // As OpenAI's checkpoints have it.
  config["quantization_config"] = {
      {"quant_method", "mxfp4"},
      {"modules_to_not_convert",
       {"model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"}}};
  return config;
}

/// Random bytes, and numbers from 1 on where float32 stands.
naive::Weights weights_of(const Catalog& catalog) {
  std::mt19937 random(3);
  naive::Weights weights;
  for (const Tensor& tensor : catalog.tensors()) {
    std::vector<std::byte>& bytes = weights[tensor.name];
    bytes.resize(static_cast<std::size_t>(tensor.bytes()));
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random() & 0xff);
    if (tensor.dtype != DType::kF32) continue;
    for (std::int64_t i = 0; i < tensor.shape.elements(); ++i) {
      const auto value = static_cast<float>(i + 1);
      std::memcpy(bytes.data() + 4 * i, &value, 4);
    }
  }
  return weights;
}

std::vector<EmulatedRank> update(const Family& family, const EngineLayout& engine,
                                 const naive::Weights& weights) {
  Topology topology;
  topology.trainers = 2;
  topology.engine = engine;
  Limits limits;
  limits.bucket_bytes = Limits::kLeastBucketBytes;
  return emulate_update(make_plan(family, topology, limits), family, weights);
}

const Parameter& find(const EmulatedRank& rank, const std::string& name) {
  const auto& parameters = rank.rank_plan.parameters;
  const auto found = std::ranges::find(parameters, name, &Parameter::name);
  if (found == parameters.end()) throw InternalError(name + " is missing");
  return *found;
}

Bytes bytes_of(const EmulatedRank& rank, const std::string& name) {
  const auto number = static_cast<std::size_t>(&find(rank, name) - rank.rank_plan.parameters.data());
  Bytes bytes(rank.parameters.at(number).size());
  std::memcpy(bytes.data(), rank.parameters[number].data(), bytes.size());
  return bytes;
}

Bytes bytes_of(const naive::Weights& weights, const std::string& name) {
  const std::vector<std::byte>& from = weights.at(name);
  Bytes bytes(from.size());
  std::memcpy(bytes.data(), from.data(), bytes.size());
  return bytes;
}

std::int64_t up_to(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// The row of a matrix from which TRT-LLM-gen's shuffle takes row n.
std::int64_t p32(std::int64_t n) {
  return n / 32 * 32 + n % 8 * 4 + n % 32 / 8;
}

/// Where the scale of row r and column c of a matrix of `cols` columns lies, in tiles of 128 × 4.
std::int64_t tile_offset(std::int64_t r, std::int64_t c, std::int64_t cols) {
  return (r / 128 * (up_to(cols, 4) / 4) + c / 4) * 512 + r % 32 * 16 + r % 128 / 32 * 4 + c % 4;
}

/// Sizes of the experts, and which part of them a rank has of an engine that pads to these units.
struct Rank {
  std::int64_t hidden;
  std::int64_t inner;
  std::int64_t first_expert;
  std::int64_t slots;
  std::int64_t inner_rank;
  std::int64_t inner_parts;
  bool trtllm;

  std::int64_t stride() const { return up_to((inner + inner_parts - 1) / inner_parts, 32); }
  std::int64_t start() const { return std::min(inner, inner_rank * stride()); }
  std::int64_t count() const { return std::min(inner, start() + stride()) - start(); }
  std::int64_t padded() const { return up_to(stride(), trtllm ? 256 : 64); }
  std::int64_t padded_hidden() const { return trtllm ? up_to(hidden, 256) : hidden; }

  /// What stands in w13: `width` bytes for each 32 of a row of the stored [E, 2I, H/32, width].
  Bytes w13(const Bytes& stored, std::int64_t width) const {
    const std::int64_t cols = padded_hidden() / 32 * width;
    Bytes result(static_cast<std::size_t>(slots * 2 * padded() * cols));
    for (std::int64_t slot = 0; slot < slots; ++slot) {
      for (std::int64_t n = 0; n < 2 * padded(); ++n) {
        const std::int64_t row = trtllm ? p32(n) ^ 1 : n;
        if (row >= 2 * count()) continue;
        for (std::int64_t col = 0; col < hidden / 32 * width; ++col) {
          const std::int64_t from =
              (((first_expert + slot) * 2 * inner + 2 * start() + row) * hidden / 32) * width + col;
          result[at(slot, n, col, 2 * padded(), cols, width)] = stored[static_cast<std::size_t>(from)];
        }
      }
    }
    return result;
  }

  Bytes w2(const Bytes& stored, std::int64_t width) const {
    const std::int64_t cols = padded() / 32 * width;
    Bytes result(static_cast<std::size_t>(slots * padded_hidden() * cols));
    for (std::int64_t slot = 0; slot < slots; ++slot) {
      for (std::int64_t n = 0; n < padded_hidden(); ++n) {
        const std::int64_t row = trtllm ? p32(n) : n;
        if (row >= hidden) continue;
        for (std::int64_t col = 0; col < count() / 32 * width; ++col) {
          const std::int64_t from =
              ((first_expert + slot) * hidden + row) * (inner / 32) * width + start() / 32 * width + col;
          result[at(slot, n, col, padded_hidden(), cols, width)] = stored[static_cast<std::size_t>(from)];
        }
      }
    }
    return result;
  }

  /// Of biases that are numbered from 1 on.
  std::vector<float> w13_bias() const {
    std::vector<float> result;
    for (std::int64_t slot = 0; slot < slots; ++slot) {
      for (std::int64_t n = 0; n < 2 * padded(); ++n) {
        const std::int64_t row = trtllm ? p32(n) ^ 1 : n;
        const std::int64_t number = (first_expert + slot) * 2 * inner + 2 * start() + row;
        result.push_back(row < 2 * count() ? static_cast<float>(number + 1) : 0.0f);
      }
    }
    return result;
  }

  std::vector<float> w2_bias() const {
    std::vector<float> result;
    for (std::int64_t slot = 0; slot < slots; ++slot) {
      for (std::int64_t n = 0; n < padded_hidden(); ++n) {
        const std::int64_t row = trtllm ? p32(n) : n;
        const bool has = row < hidden && inner_rank == 0;
        result.push_back(has ? static_cast<float>((first_expert + slot) * hidden + row + 1) : 0.0f);
      }
    }
    return result;
  }

 private:
  /// Codes lie row by row; scales, of one byte for each 32, in tiles where the engine wants that.
  std::size_t at(std::int64_t slot, std::int64_t row, std::int64_t col, std::int64_t rows, std::int64_t cols,
                 std::int64_t width) const {
    const bool tiles = trtllm && width == 1;
    return static_cast<std::size_t>(slot * rows * cols +
                                    (tiles ? tile_offset(row, col, cols) : row * cols + col));
  }
};

Bytes bytes_of(const std::vector<float>& values) {
  Bytes bytes(values.size() * 4);
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

struct Case {
  const char* layout;
  const char* moe_layout;
  Engine engine;
};

class EngineOfMxfp4 : public ::testing::TestWithParam<Case> {};

TEST_P(EngineOfMxfp4, LieAsTheirEnginesWantThem) {
  constexpr std::int64_t kHidden = 96;
  constexpr std::int64_t kInner = 160;  // five groups, of which the second of two ranks has two
  constexpr std::int64_t kCount = 4;
  const auto& [text, moe_layout, engine] = GetParam();
  const auto family = family_of(config_of(kHidden, kInner, kCount));
  const naive::Weights weights = weights_of(family->catalog());
  EngineLayout layout = parse_engine_layout(text, moe_layout);
  layout.engine = engine;
  const std::vector<EmulatedRank> ranks = update(*family, layout, weights);
  const auto stored = [&](const char* name) { return bytes_of(weights, std::string(kExperts) + name); };
  for (std::int64_t tp_rank = 0; tp_rank < layout.tp; ++tp_rank) {
    SCOPED_TRACE(tp_rank);
    const std::int64_t slots = kCount / layout.ep;
    const Rank of{kHidden,
                  kInner,
                  tp_rank / layout.expert_tp() * slots,
                  slots,
                  tp_rank % layout.expert_tp(),
                  layout.expert_tp(),
                  std::string(moe_layout) == "trtllm"};
    const EmulatedRank& rank = ranks.at(static_cast<std::size_t>(2 + tp_rank));
    const bool vllm = engine == Engine::kVllm;
    const std::string at = std::string(kExperts) + (vllm ? "routed_experts." : "");
    const std::string bias = vllm ? "_bias" : "_weight_bias";
    EXPECT_EQ(bytes_of(rank, at + "w13_weight"), of.w13(stored("gate_up_proj_blocks"), 16));
    EXPECT_EQ(bytes_of(rank, at + "w13_weight_scale"), of.w13(stored("gate_up_proj_scales"), 1));
    EXPECT_EQ(bytes_of(rank, at + "w2_weight"), of.w2(stored("down_proj_blocks"), 16));
    EXPECT_EQ(bytes_of(rank, at + "w2_weight_scale"), of.w2(stored("down_proj_scales"), 1));
    EXPECT_EQ(bytes_of(rank, at + "w13" + bias), bytes_of(of.w13_bias()));
    EXPECT_EQ(bytes_of(rank, at + "w2" + bias), bytes_of(of.w2_bias()));
    EXPECT_EQ(find(rank, at + "w13_weight").shape, (Shape{slots, 2 * of.padded(), of.padded_hidden() / 2}));
    EXPECT_EQ(find(rank, at + "w13_weight_scale").shape,
              (Shape{slots, 2 * of.padded(), of.padded_hidden() / 32}));
    EXPECT_EQ(find(rank, at + "w2_weight").shape, (Shape{slots, of.padded_hidden(), of.padded() / 2}));
    EXPECT_EQ(find(rank, at + "w2_weight_scale").shape, (Shape{slots, of.padded_hidden(), of.padded() / 32}));
    EXPECT_EQ(find(rank, at + "w13" + bias).shape, (Shape{slots, 2 * of.padded()}));
    EXPECT_EQ(find(rank, at + "w2" + bias).shape, (Shape{slots, of.padded_hidden()}));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, EngineOfMxfp4,
    ::testing::Values(Case{"tp=1", "triton", Engine::kSglang}, Case{"tp=2", "triton", Engine::kVllm},
                      Case{"tp=2,ep=2", "triton", Engine::kSglang}, Case{"tp=1", "trtllm", Engine::kVllm},
                      Case{"tp=2", "trtllm", Engine::kSglang}, Case{"tp=2,ep=2", "trtllm", Engine::kVllm},
                      Case{"tp=4,ep=2", "trtllm", Engine::kSglang}),
    [](const auto& of) {
      std::string name = fmt::format("{}_{}", of.param.layout, of.param.moe_layout);
      std::erase_if(name, [](char c) { return c == '=' || c == ','; });
      return name;
    });

/// Of what is kept of row `row` the first tag, and of its scales all, as the vectors count them.
TEST(Mxfp4Experts, OfTrtllmAreThoseOfSglangsOwnFunctions) {
  const json vectors =
      json::parse(text_of(fmt::format("{}/golden/gptoss_mxfp4_trtllm.json", WEIGHTCAST_TEST_DATA)));
  const std::int64_t hidden = vectors["H"];
  const std::int64_t inner = vectors["I"];
  const auto family = family_of(config_of(hidden, inner, 1));
  naive::Weights weights = weights_of(family->catalog());
  // The numbers of rows in the first two bytes of their codes, and of scales in two planes of their own.
  const auto number = [&](const std::string& name, std::int64_t rows, std::int64_t row_bytes) {
    for (std::int64_t row = 0; row < rows; ++row) {
      const auto tag = static_cast<std::uint16_t>(row);
      std::memcpy(weights.at(kExperts + name).data() + row * row_bytes, &tag, 2);
    }
  };
  number("gate_up_proj_blocks", 2 * inner, hidden / 2);
  number("down_proj_blocks", hidden, inner / 2);
  const EngineLayout layout = parse_engine_layout("tp=1", "trtllm");
  const std::vector<EmulatedRank> codes = update(*family, layout, weights);
  // The engine's loader pads to 256, which the functions were not given; all that lies before is the same.
  const auto row_tag = [&](const std::string& name, std::int64_t row, std::int64_t row_bytes) {
    std::uint16_t tag = 0;
    std::memcpy(&tag, bytes_of(codes.at(2), kExperts + name).data() + row * row_bytes, 2);
    return tag;
  };
  const auto w13_rows = vectors["w13_row_src"].get<std::vector<std::int64_t>>();
  const auto w2_rows = vectors["w2_row_src"].get<std::vector<std::int64_t>>();
  for (std::size_t row = 0; row < w13_rows.size(); ++row) {
    EXPECT_EQ(row_tag("w13_weight", static_cast<std::int64_t>(row), up_to(hidden, 256) / 2), w13_rows[row]);
  }
  for (std::size_t row = 0; row < w2_rows.size(); ++row) {
    EXPECT_EQ(row_tag("w2_weight", static_cast<std::int64_t>(row), up_to(inner, 256) / 2), w2_rows[row]);
  }
  const auto expect_scales = [&](const std::string& stored, const std::string& kept, std::int64_t rows,
                                 std::int64_t cols, std::int64_t padded_cols, const json& expected) {
    std::vector<std::int64_t> tags(static_cast<std::size_t>(rows * cols), 0);
    for (const int shift : {0, 8}) {
      std::vector<std::byte>& bytes = weights.at(kExperts + stored);
      for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i >> shift & 0xff);
      const Bytes held = bytes_of(update(*family, layout, weights).at(2), kExperts + kept);
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t col = 0; col < cols; ++col) {
          const std::int64_t byte = held[static_cast<std::size_t>(tile_offset(row, col, padded_cols))];
          tags[static_cast<std::size_t>(tile_offset(row, col, cols))] |= byte << shift;
        }
      }
    }
    EXPECT_EQ(tags, expected.get<std::vector<std::int64_t>>()) << kept;
  };
  expect_scales("gate_up_proj_scales", "w13_weight_scale", 2 * inner, hidden / 32, up_to(hidden, 256) / 32,
                vectors["w13_scale"]);
  expect_scales("down_proj_scales", "w2_weight_scale", hidden, inner / 32, up_to(inner, 256) / 32,
                vectors["w2_scale"]);
  const auto expect_bias = [&](const std::string& name, const json& expected) {
    const Bytes held = bytes_of(codes.at(2), kExperts + name);
    const auto sources = expected.get<std::vector<std::int64_t>>();
    for (std::size_t row = 0; row < sources.size(); ++row) {
      float value = 0;
      std::memcpy(&value, held.data() + 4 * row, 4);
      EXPECT_EQ(value, static_cast<float>(sources[row] + 1)) << name << " " << row;
    }
  };
  expect_bias("w13_weight_bias", vectors["w13_bias_src"]);
  expect_bias("w2_weight_bias", vectors["w2_bias_src"]);
}

TEST(Mxfp4Experts, OnlyExpertsAreCodes) {
  // Whatever the lists say.
  json config = config_of(96, 160, 4);
  config["quantization_config"].erase("modules_to_not_convert");
  const auto family = family_of(config);
  const Catalog& catalog = family->catalog();
  EXPECT_EQ(catalog[catalog.at("model.layers.0.self_attn.q_proj.weight")].dtype, DType::kBF16);
  EXPECT_EQ(catalog[catalog.at("model.layers.0.mlp.router.weight")].dtype, DType::kBF16);
  const Tensor& blocks = catalog[catalog.at("model.layers.0.mlp.experts.down_proj_blocks")];
  EXPECT_EQ(blocks.dtype, DType::kF4E2M1x2);
  EXPECT_EQ(family->other_stored_form(blocks)->shape, (Shape{4, 96, 5, 16}));
  EXPECT_FALSE(catalog.find("model.layers.0.mlp.experts.down_proj"));
}

TEST(Mxfp4Experts, ChunksOfOtherRowsAreNotRead) {
  const auto family = family_of(config_of(96, 160, 4));
  Checkpoint checkpoint;
  checkpoint.path = "x.h5";
  checkpoint.files.push_back({"x.h5", {}, {}});
  for (const Tensor& tensor : family->catalog().tensors()) {
    const auto form = family->other_stored_form(tensor);
    StoredTensor& stored = checkpoint.tensors.emplace_back();
    stored.name = tensor.name;
    stored.dtype = tensor.dtype;
    stored.shape = form ? form->shape : tensor.shape;
    stored.offset = StoredTensor::kThroughLibrary;
  }
  const std::string line = message_of([&] { bind(*family, checkpoint); });
  expect_has(line, {"x.h5", "mlp.experts.gate_up_proj_blocks [4, 320, 3, 16]", "in chunks", "contiguous"});
  // One behind the other they are found, each row of the model behind the one before.
  for (StoredTensor& stored : checkpoint.tensors) stored.offset = 0;
  const Binding binding = bind(*family, checkpoint);
  const std::uint32_t blocks = family->catalog().at("model.layers.0.mlp.experts.gate_up_proj_blocks");
  const auto held = binding.held.of(blocks);
  ASSERT_EQ(held.size(), 1U);
  EXPECT_EQ(held.front().pitch, 96);
  EXPECT_EQ(held.front().box, (Box{0, 4 * 160, 0, 96}));
}

TEST(Mxfp4Experts, WhatDoesNotFitIsRefused) {
  json config = config_of(96, 160, 4);
  config["intermediate_size"] = 144;
  expect_has(message_of([&] { family_of(config); }), {"intermediate_size", "144", "no multiple of the 32"});
  config = config_of(96, 160, 4);
  config["quantization_config"] = {{"quant_method", "fp8"}};
  expect_has(message_of([&] { family_of(config); }), {"quantization_config", "fp8", "MXFP4 or in bfloat16"});
  const auto family = family_of(config_of(96, 160, 4));
  const auto refusal = [&](const EngineLayout& layout) {
    return message_of<UsageError>([&] { family->parameters(layout, {}); });
  };
  expect_has(refusal(parse_engine_layout("tp=1", "cutlass")), {"--moe-layout cutlass", "triton and trtllm"});
  expect_has(refusal(parse_engine_layout("tp=2,ep=1", "deepgemm-mega")), {"--moe-layout deepgemm-mega"});
  EngineLayout quantizing = parse_engine_layout("tp=1", "triton");
  quantizing.quantizer = parse_quantizer("mxfp8");
  expect_has(refusal(quantizing), {"--quantize mxfp8", "already quantised"});
}

}  // namespace

}  // namespace weightcast
