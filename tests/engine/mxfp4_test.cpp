// gpt-oss's experts as codes of MXFP4, from the product's update to logits: those of the values that the
// codes stand for.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/float_bits.hpp"
#include "emulated_update.hpp"
#include "engine/agreement.hpp"
#include "engine/cut.hpp"
#include "engine/files.hpp"
#include "engine/mxfp4_source.hpp"
#include "engine/thread_group.hpp"
#include "model/config.hpp"
#include "model/family.hpp"
#include "plan/plan.hpp"

namespace weightcast::engine {
namespace {

constexpr std::int64_t kHidden = 64;
constexpr std::int64_t kInner = 96;  // three groups, of which the second of two ranks has one
constexpr std::int64_t kExperts = 4;
constexpr std::array<std::int64_t, 6> kIds = {3, 69, 1, 42, 7, 7};

std::string config_text(bool codes) {
  nlohmann::json config =
      nlohmann::json::parse(read_text(std::string(WEIGHTCAST_TEST_DATA) + "/tiny/gpt-oss/config.json"));
  config["hidden_size"] = kHidden;
  config["intermediate_size"] = kInner;
  config["num_local_experts"] = kExperts;
  if (codes) config["quantization_config"] = {{"quant_method", "mxfp4"}};
  return config.dump();
}

/// A checkpoint twice: as the product takes it, and as the values that it stands for.
struct RandomCheckpoint {
  naive::Weights stored;
  std::map<std::string, Tensor> values;
};

/// The values of codes [experts, rows, cols / 32, 16] and their exponents, [experts, cols, rows] as
/// checkpoints of values have them.
Tensor turned_values(const std::vector<std::byte>& codes, const std::vector<std::byte>& exponents,
                     std::int64_t rows, std::int64_t cols) {
  constexpr std::array<float, 16> kCodes = {0,     0.5F,  1,  1.5F,  2,  3,  4,  6,
                                            -0.0F, -0.5F, -1, -1.5F, -2, -3, -4, -6};
  Tensor values{Shape{kExperts, cols, rows}, {}};
  for (std::int64_t expert = 0; expert < kExperts; ++expert) {
    for (std::int64_t col = 0; col < cols; ++col) {
      for (std::int64_t row = 0; row < rows; ++row) {
        const std::int64_t element = (expert * rows + row) * cols + col;
        const auto byte = static_cast<unsigned>(codes[static_cast<std::size_t>(element / 2)]);
        const auto exponent = static_cast<int>(exponents[static_cast<std::size_t>(element / 32)]);
        const unsigned code = element % 2 == 0 ? byte & 15U : byte >> 4U;
        values.values.push_back(std::ldexp(kCodes.at(code), exponent - 127));
      }
    }
  }
  return values;
}

RandomCheckpoint random_checkpoint(const Catalog& catalog) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal(0, 0.3F);
  RandomCheckpoint checkpoint;
  for (const weightcast::Tensor& tensor : catalog.tensors()) {
    std::vector<std::byte>& bytes = checkpoint.stored[tensor.name];
    bytes.resize(static_cast<std::size_t>(tensor.bytes()));
    const auto count = static_cast<std::size_t>(tensor.shape.elements());
    if (tensor.dtype == DType::kF8E8M0) {
      for (std::byte& byte : bytes) byte = static_cast<std::byte>(122 + random() % 4);
    } else if (dtype_bytes(tensor.dtype) == 1) {
      for (std::byte& byte : bytes) byte = static_cast<std::byte>(random() & 0xff);
    } else {
      Tensor values{tensor.shape, std::vector<float>(count)};
      for (float& value : values.values) value = bf16_value(bf16_bits(normal(random)));
      for (std::size_t i = 0; i < count; ++i) {
        const auto bits = bf16_bits(values.values[i]);
        if (tensor.dtype == DType::kBF16) {
          std::memcpy(bytes.data() + 2 * i, &bits, 2);
        } else {
          std::memcpy(bytes.data() + 4 * i, &values.values[i], 4);
        }
      }
      if (tensor.name.find(".experts.") != std::string::npos) {
        values.shape = Shape{kExperts, static_cast<std::int64_t>(count) / kExperts};
      }
      checkpoint.values[tensor.name] = values;
    }
  }
  for (const char* layer : {"0", "1"}) {
    const std::string at = fmt::format("model.layers.{}.mlp.experts.", layer);
    const auto stored = [&](const char* name) { return checkpoint.stored.at(at + name); };
    checkpoint.values[at + "gate_up_proj"] =
        turned_values(stored("gate_up_proj_blocks"), stored("gate_up_proj_scales"), 2 * kInner, kHidden);
    checkpoint.values[at + "down_proj"] =
        turned_values(stored("down_proj_blocks"), stored("down_proj_scales"), kHidden, kInner);
  }
  return checkpoint;
}

/// What a rank has received, codes and exponents as numbers.
MemorySource parameters_of(const EmulatedRank& rank) {
  std::map<std::string, Tensor> tensors;
  for (std::size_t p = 0; p < rank.parameters.size(); ++p) {
    const Parameter& parameter = rank.rank_plan.parameters[p];
    const std::vector<std::byte>& bytes = rank.parameters[p];
    Tensor& tensor = tensors[parameter.name];
    tensor.shape = parameter.shape;
    const auto element = static_cast<std::size_t>(dtype_bytes(parameter.dtype));
    for (std::size_t at = 0; at < bytes.size(); at += element) {
      std::uint32_t bits = 0;
      std::memcpy(&bits, bytes.data() + at, element);
      tensor.values.push_back(element == 1   ? static_cast<float>(bits)
                              : element == 2 ? bf16_value(static_cast<std::uint16_t>(bits))
                                             : std::bit_cast<float>(bits));
    }
  }
  return MemorySource(std::move(tensors));
}

/// Logits from what an update has left in each rank of a layout; those shards are then read as `read_as`.
Matrix logits_of_update(const RandomCheckpoint& checkpoint, const Family& family, std::int64_t tp,
                        std::int64_t ep, const std::string& moe_layout, const std::string& read_as) {
  Topology topology;
  topology.engine.tp = tp;
  topology.engine.ep = ep;
  topology.engine.moe_layout = moe_layout;
  Limits limits;
  limits.bucket_bytes = Limits::kLeastBucketBytes;
  const auto ranks = emulate_update(make_plan(family, topology, limits), family, checkpoint.stored);
  const ModelConfig config = parse_model_config(config_text(false));
  ThreadMeeting meeting(tp);
  std::vector<Matrix> logits(static_cast<std::size_t>(tp));
  {
    std::vector<std::jthread> threads;
    for (std::int64_t rank = 0; rank < tp; ++rank) {
      threads.emplace_back([&, rank] {
        const RankLayout layout{rank, tp, rank / (tp / ep), ep, false, 32};
        const MemorySource received = parameters_of(ranks.at(static_cast<std::size_t>(1 + rank)));
        ThreadGroup group(rank, meeting);
        const Model model(config, layout, Mxfp4Source(received, config, layout, read_as == "trtllm"), group);
        logits[static_cast<std::size_t>(rank)] = model.logits(kIds);
      });
    }
  }
  return logits.front();
}

double distance(const Matrix& a, const Matrix& b) {
  double greatest = 0;
  double difference = 0;
  for (std::size_t i = 0; i < a.values.size(); ++i) {
    greatest = std::max(greatest, std::abs(double{a.values[i]}));
    difference = std::max(difference, std::abs(double{a.values[i]} - b.values[i]));
  }
  return difference / greatest;
}

TEST(Mxfp4, LogitsAreThoseOfTheValuesThatCodesStandFor) {
  const auto family = make_family(weightcast::ModelConfig(config_text(true), "config.json"));
  const RandomCheckpoint checkpoint = random_checkpoint(family->catalog());
  const ModelConfig config = parse_model_config(config_text(false));
  SoloGroup group;
  const MemorySource values(cut_rank(config, RankLayout{}, MemorySource(checkpoint.values)));
  const Matrix expected = Model(config, RankLayout{}, values, group).logits(kIds);
  for (const char* moe_layout : {"triton", "trtllm"}) {
    for (const auto& [tp, ep] : {std::array{1, 1}, std::array{2, 1}, std::array{2, 2}, std::array{4, 2}}) {
      const Matrix logits = logits_of_update(checkpoint, *family, tp, ep, moe_layout, moe_layout);
      EXPECT_LT(distance(expected, logits), 1e-5) << moe_layout << " tp " << tp << " ep " << ep;
    }
  }
}

TEST(Mxfp4, OneLayoutIsNotTheOther) {
  const auto family = make_family(weightcast::ModelConfig(config_text(true), "config.json"));
  const RandomCheckpoint checkpoint = random_checkpoint(family->catalog());
  const Matrix right = logits_of_update(checkpoint, *family, 1, 1, "trtllm", "trtllm");
  EXPECT_GT(distance(right, logits_of_update(checkpoint, *family, 1, 1, "trtllm", "triton")), 1e-2);
}

}  // namespace
}  // namespace weightcast::engine
