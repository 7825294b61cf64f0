// Updates that quantise on the way: either side, any order, again and again; what travels, what it is worth,
// what is refused, and what the proof objects to.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/float_bits.hpp"
#include "emulated_update.hpp"
#include "naive_model.hpp"
#include "plan/proof.hpp"
#include "plan_cases.hpp"

namespace weightcast {

namespace {

using namespace plan_cases;

/// The layouts of experts that take a scheme.
std::vector<const char*> layouts_of(QuantScheme scheme) {
  std::vector<const char*> layouts;
  for (const naive::Taken& taken : naive::taken_pairs()) {
    if (taken.scheme == scheme) layouts.push_back(taken.moe_layout);
  }
  return layouts;
}

/// With the first layout of experts that takes the quantiser, where none is named.
Topology quantizing(Topology topology, Quantizer quantizer, const char* moe_layout = nullptr) {
  topology.engine.quantizer = quantizer;
  topology.engine.moe_layout = moe_layout != nullptr ? moe_layout : layouts_of(quantizer.scheme).front();
  return topology;
}

Limits at(Limits limits, QuantizeAt side) {
  limits.quantize_at = side;
  return limits;
}

constexpr QuantizeAt kSides[] = {QuantizeAt::kSource, QuantizeAt::kDestination};

const char* name_of(QuantizeAt side) {
  return side == QuantizeAt::kSource ? "source" : "destination";
}

/// A version of the weights and what they are quantised to.
struct Version {
  naive::Weights weights;
  naive::Quantized quantized;

  Version(const naive::Model& model, Quantizer quantizer, std::uint64_t number)
      : weights(naive::random_values(model, number)), quantized(naive::quantize(model, quantizer, weights)) {}
};

/// The place of a world rank in the engine, if it has one, for engines without pp.
std::optional<EngineRank> place_of(const Topology& topology, std::size_t world_rank) {
  const auto rank = topology.inference_rank(static_cast<std::int64_t>(world_rank));
  if (!rank) return std::nullopt;
  return EngineRank{*rank / topology.engine.tp, 0, *rank % topology.engine.tp};
}

void expect_version(const naive::Model& model, const Topology& topology,
                    const std::vector<EmulatedRank>& ranks, const Version& version) {
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    SCOPED_TRACE(fmt::format("rank {}", r));
    const auto place = place_of(topology, r);
    if (!place) continue;
    expect_parameters(ranks[r],
                      naive::parameters(model, topology.engine, *place, version.weights, version.quantized));
  }
}

/// What UsageError says; empty where nothing is refused. Another error is a failure.
template <typename Act>
std::string refusal(Act act) {
  try {
    act();
  } catch (const UsageError& error) {
    return error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "no refusal but: " << error.what();
    return error.what();
  }
  return "";
}

void expect_words(const std::string& line, const std::vector<std::string>& words) {
  for (const std::string& word : words) {
    EXPECT_TRUE(line.find(word) != std::string::npos) << "'" << word << "' is not in: " << line;
  }
}

/// Each quantiser is a test of its own.
class EachQuantizer : public ::testing::TestWithParam<std::string> {
 protected:
  Quantizer quantizer() const { return parse_quantizer(GetParam()); }
  QuantScheme scheme() const { return quantizer().scheme; }
};

std::string test_name(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace_if(
      name.begin(), name.end(), [](char c) { return c == '-' || c == ':'; }, '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(All, EachQuantizer, ::testing::ValuesIn(quantizer_names()), test_name);

TEST_P(EachQuantizer, BothSidesGiveTheSameBytes) {
  std::vector<std::pair<naive::Model, const char*>> models{{quantizable(false), "triton"}};
  for (const char* layout : layouts_of(scheme())) models.emplace_back(quantizable(true), layout);
  for (const auto& [model, layout] : models) {
    const auto family = model.family();
    const Version version(model, quantizer(), 1);
    const Topology topology = quantizing(topology_of(2, "tp=2,ep=2"), quantizer(), layout);
    std::vector<std::vector<EmulatedRank>> of_sides;
    for (const QuantizeAt side : kSides) {
      SCOPED_TRACE(fmt::format("{} {}", layout, name_of(side)));
      const Plan plan = make_plan(*family, topology, at(capped(100'000), side));
      of_sides.push_back(emulate_update(plan, *family, version.weights, version.quantized));
      expect_version(model, topology, of_sides.back(), version);
    }
    for (std::size_t r = 0; r < of_sides[0].size(); ++r) {
      EXPECT_TRUE(of_sides[0][r].parameters == of_sides[1][r].parameters) << layout << ", rank " << r;
    }
  }
}

TEST_P(EachQuantizer, AnyOrderAndAgainAndAgain) {
  const naive::Model model = quantizable(!layouts_of(scheme()).empty());
  const auto family = model.family();
  const Version first(model, quantizer(), 1);
  const Version second(model, quantizer(), 2);
  const Topology topology = quantizing(topology_of(2, "tp=2"), quantizer());
  std::mt19937 random(7);
  for (const QuantizeAt side : kSides) {
    SCOPED_TRACE(name_of(side));
    const Plan plan = make_plan(*family, topology, at(capped(64 << 10), side));
    std::vector<std::uint32_t> order(plan.buckets.size());
    for (std::uint32_t i = 0; i < order.size(); ++i) order[i] = i;
    EmulatedUpdate update(plan, *family);
    // Twice the same weights, then others, each bucket's programs three times in a row, in another order each
    // time.
    for (const Version* version : {&first, &first, &second}) {
      std::shuffle(order.begin(), order.end(), random);
      update.begin(version->weights, version->quantized);
      for (const std::uint32_t bucket : order) update.apply(bucket, 3);
      update.verify();
      expect_version(model, topology, update.ranks(), *version);
    }
  }
}

/// Sets of `version` what segment `box` of a tensor carries to what `newer` has.
void overlay(Version& version, const Version& newer, const Tensor& tensor, const Box& box) {
  const auto found = version.quantized.find(tensor.name);
  std::vector<std::byte>& values = version.weights.at(tensor.name);
  const std::vector<std::byte>& newer_values = newer.weights.at(tensor.name);
  for (std::int64_t row = box.row; row < box.row + box.rows; ++row) {
    for (std::int64_t col = box.col; col < box.col + box.cols; ++col) {
      const auto i = static_cast<std::size_t>(row * tensor.shape.cols() + col);
      std::memcpy(&values[2 * i], &newer_values[2 * i], 2);
      if (found == version.quantized.end()) continue;
      naive::QuantizedTensor& to = found->second;
      const naive::QuantizedTensor& from = newer.quantized.at(tensor.name);
      to.codes[i] = from.codes[i];
      const auto block =
          static_cast<std::size_t>(row / to.format.block_rows * to.scale_cols() + col / to.format.block_cols);
      to.scales[block] = from.scales[block];
    }
  }
}

TEST_P(EachQuantizer, PartOfAnUpdateTouchesNothingElse) {
  const naive::Model model = quantizable(!layouts_of(scheme()).empty());
  const auto family = model.family();
  const Version before(model, quantizer(), 1);
  const Version after(model, quantizer(), 2);
  const Topology topology = quantizing(topology_of(2, "tp=2"), quantizer());
  for (const QuantizeAt side : kSides) {
    SCOPED_TRACE(name_of(side));
    const Plan plan = make_plan(*family, topology, at(capped(64 << 10), side));
    EmulatedUpdate update(plan, *family);
    update.begin(before.weights, before.quantized);
    for (std::uint32_t bucket = 0; bucket < plan.buckets.size(); ++bucket) update.apply(bucket);
    update.begin(after.weights, after.quantized);
    std::set<std::uint32_t> applied;
    for_each_segment(plan, [&](const Bucket& bucket, const Segment& segment) {
      if (family->catalog()[segment.tensor].name.starts_with("model.layers.1.")) {
        applied.insert(static_cast<std::uint32_t>(&bucket - plan.buckets.data()));
      }
    });
    ASSERT_GT(applied.size(), 1u);
    ASSERT_LT(applied.size() + 1, plan.buckets.size());
    for (const std::uint32_t bucket : applied) update.apply(bucket);

    for (std::size_t r = 0; r < update.ranks().size(); ++r) {
      const auto place = place_of(topology, r);
      if (!place) continue;
      SCOPED_TRACE(fmt::format("rank {}", r));
      // Scales over all are written before the first bucket.
      Version mixed = before;
      for (auto& [name, tensor] : mixed.quantized) tensor.global = after.quantized.at(name).global;
      for (const std::uint32_t number : applied) {
        const Bucket& bucket = plan.buckets[number];
        if (!plan.receives(bucket.destinations, static_cast<std::int64_t>(r))) continue;
        for (std::uint32_t i = 0; i < bucket.segments; ++i) {
          const Segment& segment = plan.segments[bucket.first_segment + i];
          overlay(mixed, after, family->catalog()[segment.tensor], segment.box);
        }
      }
      expect_parameters(update.ranks()[r],
                        naive::parameters(model, topology.engine, *place, mixed.weights, mixed.quantized));
    }
  }
}

/// Bytes of a tensor as codes and scales, from its shape alone.
std::int64_t quantized_bytes(const naive::Entry& entry, QuantScheme scheme) {
  const std::int64_t rows = entry.shape.rows();
  const std::int64_t cols = entry.shape.cols();
  switch (scheme) {
    case QuantScheme::kFp8Block:
      return rows * cols + (rows + 127) / 128 * ((cols + 127) / 128) * 4;
    case QuantScheme::kFp8Tensor:
      return rows * cols;
    case QuantScheme::kFp8Channel:
      return rows * cols + rows * 4;
    case QuantScheme::kMxfp8:
      return rows * cols + rows * cols / 32;
    case QuantScheme::kNvfp4:
      return rows * cols / 2 + rows * cols / 16;
    case QuantScheme::kMxfp4:
      return rows * cols / 2 + rows * cols / 32;
  }
  return 0;
}

TEST_P(EachQuantizer, TheSourceSendsCodesAndScalesAndNothingMore) {
  const naive::Model model = quantizable(!layouts_of(scheme()).empty());
  const auto family = model.family();
  const Topology plain = topology_of(1, "tp=1");
  const Topology topology = quantizing(plain, quantizer());
  // One bucket: tensors one behind the other, each from a multiple of 256 on.
  std::int64_t codes_end = 0;
  std::int64_t values_end = 0;
  for (const naive::Entry& entry : naive::tensors(model)) {
    const bool linear = entry.name.ends_with("_proj.weight");
    const std::int64_t values = entry.shape.elements() * 2;
    codes_end = (codes_end + 255) / 256 * 256 + (linear ? quantized_bytes(entry, scheme()) : values);
    values_end = (values_end + 255) / 256 * 256 + values;
  }
  const auto wire_bytes = [&](const Topology& t, QuantizeAt side) {
    const Plan plan = make_plan(*family, t, at(capped(1 << 30), side));
    EXPECT_EQ(plan.buckets.size(), 1u);
    return plan.wire_bytes();
  };
  EXPECT_EQ(wire_bytes(topology, QuantizeAt::kSource), codes_end);
  EXPECT_EQ(wire_bytes(topology, QuantizeAt::kDestination), values_end);
  EXPECT_EQ(wire_bytes(plain, QuantizeAt::kSource), values_end);
}

TEST(QuantizedPlans, ZerosBesideTheRowsOfAMatrixWithoutALayout) {
  // trtllm pads the inner size of a rank to 128, in fp8-block of matrices that lie row by row.
  naive::Model model = quantizable(true);
  model.expert_inner = 192;
  const auto family = model.family();
  const Quantizer quantizer = parse_quantizer("fp8-block");
  const Version version(model, quantizer, 1);
  for (const char* engine : {"tp=1", "tp=2"}) {
    SCOPED_TRACE(engine);
    const Topology topology = quantizing(topology_of(1, engine), quantizer, "trtllm");
    const Plan plan = make_plan(*family, topology, at(capped(100'000), QuantizeAt::kDestination));
    expect_version(model, topology, emulate_update(plan, *family, version.weights, version.quantized),
                   version);
  }
}

TEST(QuantizedPlans, BytesOfAProjectionByHand) {
  const auto family = quantizable(false).family();
  const std::uint32_t q = family->catalog().at("model.layers.0.self_attn.q_proj.weight");
  ASSERT_EQ(family->catalog()[q].shape, (Shape{512, 256}));
  const auto bytes = [&](const char* name, QuantizeAt side) {
    const Topology topology = quantizing(topology_of(1, "tp=1"), parse_quantizer(name));
    const Plan plan = make_plan(*family, topology, at(capped(1 << 30), side));
    return plan.wire[q].bytes({0, 512, 0, 256});
  };
  EXPECT_EQ(bytes("fp8-block", QuantizeAt::kSource), 131'072 + 32);
  EXPECT_EQ(bytes("fp8-tensor", QuantizeAt::kSource), 131'072);
  EXPECT_EQ(bytes("fp8-channel", QuantizeAt::kSource), 131'072 + 2'048);
  EXPECT_EQ(bytes("mxfp8", QuantizeAt::kSource), 131'072 + 4'096);
  EXPECT_EQ(bytes("nvfp4", QuantizeAt::kSource), 65'536 + 8'192);
  EXPECT_EQ(bytes("mxfp4", QuantizeAt::kSource), 65'536 + 4'096);
  EXPECT_EQ(bytes("fp8-block", QuantizeAt::kDestination), 262'144);
}

TEST(QuantizedPlans, QuantizerAndSideAreInTheHash) {
  const auto family = quantizable(false).family();
  std::set<std::uint64_t> hashes;
  for (const std::string& name : quantizer_names()) {
    for (const QuantizeAt side : kSides) {
      const Topology topology = quantizing(topology_of(1, "tp=1"), parse_quantizer(name));
      hashes.insert(make_plan(*family, topology, at(capped(1 << 30), side)).hash);
    }
  }
  hashes.insert(make_plan(*family, topology_of(1, "tp=1"), capped(1 << 30)).hash);
  EXPECT_EQ(hashes.size(), 2 * quantizer_names().size() + 1);
}

/// How far a value may be from what an engine makes of it: half a step of the codes around it.
double error_bound(const naive::QuantizedTensor& tensor, QuantScheme scheme, std::int64_t row,
                   std::int64_t col, double value) {
  const std::uint32_t stored = tensor.scale(row, col);
  const auto byte = static_cast<std::uint8_t>(stored);
  const double magnitude = std::fabs(value);
  const auto of_e4m3 = [&](double scale) {
    // Three bits of mantissa; below 2^-6 steps of 2^-9. The product with the reciprocal and a quotient in
    // bfloat16 may each turn a tie.
    return std::max(magnitude / 16, scale / 1024) * 1.001 + magnitude / 256;
  };
  const auto of_e2m1 = [&](double scale) {
    const double code = magnitude / scale;
    // Steps of 1/2, 1 and 2; beyond 6 all become 6.
    return scale * (code <= 2 ? 0.25 : code <= 4 ? 0.5 : code <= 6 ? 1 : std::max(1.0, code - 6)) * 1.001;
  };
  switch (scheme) {
    case QuantScheme::kFp8Tensor:
      return of_e4m3(tensor.global.stored);
    case QuantScheme::kMxfp8:
      return of_e4m3(std::ldexp(1.0, static_cast<int>(byte) - 127));
    case QuantScheme::kMxfp4:
      return of_e2m1(std::ldexp(1.0, static_cast<int>(byte) - 127));
    case QuantScheme::kNvfp4: {
      // A block scale below the least of E4M3 is zero.
      const double scale = static_cast<double>(e4m3_value(byte)) * static_cast<double>(tensor.global.stored);
      if (scale == 0) return 6.0 / 1024 * static_cast<double>(tensor.global.stored);
      // Within half a step of what would make the largest a 6, or within the least step of E4M3.
      return of_e2m1(scale) + static_cast<double>(tensor.global.stored) * 6 / 1024;
    }
    case QuantScheme::kFp8Block:
    case QuantScheme::kFp8Channel:
      break;
  }
  return of_e4m3(static_cast<double>(std::bit_cast<float>(stored)));
}

TEST_P(EachQuantizer, WhatArrivesIsNearWhatTheTrainersHave) {
  naive::Model model = quantizable(!layouts_of(scheme()).empty());
  model.layers = 1;
  const auto family = model.family();
  // Without infinities and what is no number, which have no distance.
  naive::Weights weights = naive::random_values(model, 3);
  for (auto& [name, bytes] : weights) {
    for (std::size_t i = 0; i < bytes.size(); i += 2) {
      if (std::uint16_t bits = 0; std::memcpy(&bits, &bytes[i], 2), (bits & 0x7f80u) == 0x7f80u) {
        std::memset(&bytes[i], 0, 2);
      }
    }
  }
  const Topology topology = quantizing(topology_of(2, "tp=1"), quantizer());
  const Plan plan = make_plan(*family, topology, at(capped(100'000), QuantizeAt::kDestination));
  const std::vector<EmulatedRank> ranks =
      emulate_update(plan, *family, weights, naive::quantize(model, quantizer(), weights));
  // o_proj is one whole tensor, so that its planes are read as an engine reads them.
  const std::string name = "model.layers.0.self_attn.o_proj.weight";
  const naive::QuantFormat format = naive::format_of(scheme());
  const auto plane = [&](const std::string& wanted) -> const std::vector<std::byte>* {
    const std::vector<Parameter>& parameters = ranks.back().rank_plan.parameters;
    for (std::size_t p = 0; p < parameters.size(); ++p) {
      if (parameters[p].name == wanted) return &ranks.back().parameters[p];
    }
    return nullptr;
  };
  naive::QuantizedTensor read{format, 256, 512, {}, {}, {}};
  if (read.format.block_rows == 0) read.format.block_rows = read.rows;
  if (read.format.block_cols == 0) read.format.block_cols = read.cols;
  const std::vector<std::byte>* codes = plane(name);
  ASSERT_NE(codes, nullptr);
  for (std::int64_t i = 0; i < read.rows * read.cols; ++i) {
    const auto byte =
        std::to_integer<unsigned>((*codes)[static_cast<std::size_t>(i / format.codes_per_byte)]);
    const bool high = format.codes_per_byte == 2 && i % 2 == 1;
    read.codes.push_back(static_cast<std::uint8_t>(high                         ? byte >> 4
                                                   : format.codes_per_byte == 2 ? byte & 15u
                                                                                : byte));
  }
  read.scales.resize(static_cast<std::size_t>(read.scale_rows() * read.scale_cols()), 0);
  if (format.scale_bytes > 0) {
    const std::vector<std::byte>* scales = plane(name + format.scales_suffix);
    ASSERT_NE(scales, nullptr);
    const auto each = static_cast<std::size_t>(format.scale_bytes);
    // Those of FP4 in tiles, which here are whole.
    ASSERT_EQ(scales->size(), read.scales.size() * each);
    const bool tiles = format.codes_per_byte == 2;
    for (std::size_t i = 0; i < read.scales.size(); ++i) {
      const auto row = static_cast<std::int64_t>(i) / read.scale_cols();
      const auto col = static_cast<std::int64_t>(i) % read.scale_cols();
      const auto at = tiles ? static_cast<std::size_t>(naive::tile_offset(row, col, read.scale_cols())) : i;
      std::memcpy(&read.scales[i], &(*scales)[at * each], each);
    }
  }
  if (format.global) {
    const std::vector<std::byte>* global = plane(name + format.global_suffix);
    ASSERT_NE(global, nullptr);
    ASSERT_EQ(global->size(), 4u);
    std::memcpy(&read.global.stored, global->data(), 4);
  }
  const std::vector<std::byte>& values = weights.at(name);
  for (std::int64_t i = 0; i < read.rows * read.cols; ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, &values[static_cast<std::size_t>(2 * i)], 2);
    const double value = static_cast<double>(bf16_value(bits));
    const std::int64_t row = i / read.cols;
    const std::int64_t col = i % read.cols;
    const double near = static_cast<double>(naive::dequantized(quantizer(), read, row, col));
    ASSERT_LE(std::fabs(near - value), error_bound(read, scheme(), row, col, value))
        << "row " << row << " column " << col << ": " << value << " became " << near;
  }
}

// ---- what is refused ----

TEST(QuantizedRefusals, TrainersThatHoldHalfABlock) {
  naive::Model model = quantizable(false);
  model.head_dim = 64;
  model.heads = 8;
  // Each of two trainers has 64 rows of k.
  Topology topology = quantizing(topology_of(2, "tp=1"), parse_quantizer("fp8-block"));
  TrainerLayout layout;
  layout.tp = 2;
  layout.etp = 2;
  topology.trainer_layout = layout;
  const auto family = model.family();
  expect_words(
      refusal([&] { make_plan(*family, topology, capped(1 << 20)); }),
      {"--trainer-alloc", "model.layers.0.self_attn.k_proj.weight", "[128, 256]", "128 × 128", "--quantize"});
  // Whole rows from one trainer: o_proj is cut along its columns.
  topology.engine.quantizer = parse_quantizer("fp8-channel");
  expect_words(refusal([&] { make_plan(*family, topology, capped(1 << 20)); }),
               {"--trainer-alloc", "o_proj.weight", "rows"});
  topology.engine.quantizer = parse_quantizer("fp8-tensor");
  EXPECT_EQ(refusal([&] { make_plan(*family, topology, capped(1 << 20)); }), "");
  // Of mxfp4 blocks are short enough.
  topology.engine.quantizer = parse_quantizer("mxfp4");
  EXPECT_EQ(refusal([&] { make_plan(*family, topology, capped(1 << 20)); }), "");
}

TEST(QuantizedRefusals, ASplitByRowsThroughABlock) {
  const auto family = quantizable(false).family();
  Topology topology = quantizing(topology_of(3, "tp=1"), parse_quantizer("fp8-block"));
  topology.source_split = SourceSplit::kRow;
  // A third of 512 rows of q_proj.
  expect_words(refusal([&] { make_plan(*family, topology, capped(1 << 20)); }),
               {"--source-split row", "row 170", "model.layers.0.self_attn.q_proj.weight", "[512, 256]",
                "block of 128 rows"});
  topology.trainers = 2;
  EXPECT_EQ(refusal([&] { make_plan(*family, topology, capped(1 << 20)); }), "");
  topology.trainers = 3;
  topology.engine.quantizer = parse_quantizer("fp8-channel");
  EXPECT_EQ(refusal([&] { make_plan(*family, topology, capped(1 << 20)); }), "");
}

TEST(QuantizedRefusals, ATpThatCutsABlock) {
  naive::Model model = quantizable(false);
  const auto line = [&](const char* engine, const char* quantizer) {
    const auto family = model.family();
    return refusal([&] {
      make_plan(*family, quantizing(topology_of(1, engine), parse_quantizer(quantizer)), capped(1 << 20));
    });
  };
  EXPECT_EQ(line("tp=2", "fp8-block"), "");
  // 64 rows of gate and up on each rank.
  expect_words(line("tp=4", "fp8-block"),
               {"--inference", "gate_proj.weight", "rows 0..64", "128 rows", "fp8-block"});
  EXPECT_EQ(line("tp=4", "mxfp8"), "");
  // 16 columns of down_proj on each rank.
  model.inner = 64;
  expect_words(line("tp=4", "mxfp8"), {"--inference", "down_proj.weight", "[256, 64]", "1 × 32"});
  EXPECT_EQ(line("tp=4", "nvfp4"), "");
  EXPECT_EQ(line("tp=4", "fp8-channel"), "");
  model = quantizable(true);
  expect_words(line("tp=4", "fp8-block"), {"128"});
}

TEST(QuantizedRefusals, FusedMatricesWhoseBlocksWouldLieAcrossTwoTensors) {
  // Kernels take the scale of row r of a fused matrix from row r/128 of its scales, so a tensor that ends
  // amid a block may not be followed by another (LAYOUTS.md 4.2: each merged part is a multiple of 128).
  const auto line = [](const naive::Model& model) {
    const auto family = model.family();
    return refusal([&] {
      make_plan(*family, quantizing(topology_of(1, "tp=1"), parse_quantizer("fp8-block")), capped(1 << 20));
    });
  };
  naive::Model qkv = quantizable(false);
  qkv.head_dim = 48;  // 192 rows of q
  expect_words(line(qkv), {"q_proj.weight", "128", "at any tp", "choose another --quantize"});
  naive::Model gate_up = quantizable(false);
  gate_up.inner = 192;
  expect_words(line(gate_up), {"gate_proj.weight", "128"});
  naive::Model experts = quantizable(true);
  experts.expert_inner = 192;
  expect_words(line(experts), {"192", "128"});
  // Alone a tensor may end amid a block: hidden is the rows of o_proj and the columns of the others.
  naive::Model ragged = quantizable(false);
  ragged.hidden = 200;
  EXPECT_EQ(line(ragged), "");
}

TEST(QuantizedRefusals, ModelsThatAreNotBfloat16) {
  for (const DType dtype : {DType::kF32, DType::kF16}) {
    for (const bool moe : {false, true}) {
      naive::Model model = quantizable(moe);
      model.dtype = dtype;
      const auto family = model.family();
      expect_words(refusal([&] {
                     make_plan(*family, quantizing(topology_of(1, "tp=1"), parse_quantizer("fp8-block")),
                               capped(1 << 20));
                   }),
                   {"--quantize fp8-block", "q_proj.weight", std::string(dtype_name(dtype)), "bfloat16"});
    }
  }
}

TEST(QuantizedRefusals, LayoutsWhoseKernelsReadNoCodes) {
  const auto family = quantizable(true).family();
  for (const std::string& name : quantizer_names()) {
    const Topology topology = quantizing(topology_of(1, "tp=1"), parse_quantizer(name), "triton-kernels");
    expect_words(refusal([&] { make_plan(*family, topology, capped(1 << 20)); }),
                 {"--moe-layout triton-kernels", name});
  }
}

/// Rows of more than the least bucket.
naive::Model wide(std::int64_t hidden) {
  naive::Model model;
  model.hidden = hidden;
  model.layers = 1;
  model.heads = 2;
  model.kv_heads = 1;
  model.head_dim = 2;
  model.vocabulary = 64;
  model.inner = 4;
  model.tied = true;
  return model;
}

TEST(QuantizedRefusals, ABucketSmallerThanWhatAScaleFollowsFromNamesTheLeast) {
  struct Case {
    std::int64_t hidden;
    QuantizeAt side;
    std::int64_t least;  // of a row and, where codes travel, its scale
  };
  // 80,000 bytes of values; 70,000 of codes, to a multiple of 16, and 4 of the scale.
  for (const Case& c :
       {Case{40'000, QuantizeAt::kDestination, 80'000}, Case{70'000, QuantizeAt::kSource, 70'004}}) {
    SCOPED_TRACE(name_of(c.side));
    const auto family = wide(c.hidden).family();
    const Topology topology = quantizing(topology_of(1, "tp=1"), parse_quantizer("fp8-channel"));
    const auto line = [&](std::int64_t cap) {
      return refusal([&] {
        const Plan plan = make_plan(*family, topology, at(capped(cap), c.side));
        make_rank_plan(plan, *family, 1);
      });
    };
    const std::string words = line(64 << 10);
    expect_words(words, {"--bucket-size", "proj.weight", "the least is "});
    expect_words(line(c.least - 1), {"--bucket-size"});
    EXPECT_EQ(line(c.least), "");
    // What the line names can be given as it stands.
    const std::string phrase = "the least is ";
    if (words.find(phrase) == std::string::npos) continue;
    std::int64_t named = 0;
    EXPECT_EQ(refusal([&] { named = parse_bytes(words.substr(words.find(phrase) + phrase.size())); }), "");
    EXPECT_EQ(named, c.least);
  }
}

TEST(QuantizedPlans, RowsWiderThanABucketAreCutAmongBlocks) {
  // Scales of short blocks and of tensors do not ask for whole rows.
  const naive::Model model = wide(70'016);
  const auto family = model.family();
  for (const char* name : {"mxfp8", "fp8-tensor", "nvfp4"}) {
    const Quantizer quantizer = parse_quantizer(name);
    const Version version(model, quantizer, 1);
    for (const QuantizeAt side : kSides) {
      SCOPED_TRACE(fmt::format("{} {}", name, name_of(side)));
      const Topology topology = quantizing(topology_of(1, "tp=1"), quantizer);
      const Plan plan = make_plan(*family, topology, at(capped(64 << 10), side));
      expect_version(model, topology, emulate_update(plan, *family, version.weights, version.quantized),
                     version);
    }
  }
}

// ---- what the proof objects to ----

/// A model whose parameters were tampered with.
template <typename Tamper>
ListedFamily tampered(const Family& family, Tamper tamper) {
  return ListedFamily(family.catalog(),
                      [&family, tamper](const Catalog&, const EngineLayout& layout, const EngineRank& rank) {
                        std::vector<Parameter> parameters = family.parameters(layout, rank);
                        tamper(parameters);
                        return parameters;
                      });
}

Parameter& parameter_named(std::vector<Parameter>& parameters, const std::string& name) {
  return *std::find_if(parameters.begin(), parameters.end(),
                       [&](const Parameter& parameter) { return parameter.name == name; });
}

TEST(QuantizedProofs, DamageToAPlaneIsFound) {
  const auto family = quantizable(false).family();
  const std::string qkv = "model.layers.1.self_attn.qkv_proj.weight";
  struct Damage {
    const char* what;
    const char* quantizer;
    std::function<void(std::vector<Parameter>&)> tamper;
  };
  const std::vector<Damage> damages{
      {"no scales of v", "fp8-block",
       [&](auto& all) { parameter_named(all, qkv + "_scale_inv").parts.pop_back(); }},
      {"scales of v twice", "fp8-block",
       [&](auto& all) {
         std::vector<Part>& parts = parameter_named(all, qkv + "_scale_inv").parts;
         parts.push_back(parts.back());
       }},
      {"codes of v twice", "fp8-block",
       [&](auto& all) {
         std::vector<Part>& parts = parameter_named(all, qkv).parts;
         parts.push_back(parts.back());
       }},
      {"codes and scales of v twice", "fp8-block",
       [&](auto& all) {
         for (const char* plane : {"", "_scale_inv"}) {
           std::vector<Part>& parts = parameter_named(all, qkv + plane).parts;
           parts.push_back(parts.back());
         }
       }},
      {"scales of k where those of v belong", "mxfp8",
       [&](auto& all) {
         std::vector<Part>& parts = parameter_named(all, qkv + "_scale").parts;
         parts[1].offset = parts[2].offset;
       }},
      {"codes one byte too far", "mxfp4",
       [&](auto& all) { ++parameter_named(all, qkv).parts.back().offset; }},
      {"no scale over all", "nvfp4",
       [&](auto& all) { parameter_named(all, qkv + "_scale_2").scalars.clear(); }},
      {"the scale over all twice", "fp8-tensor",
       [&](auto& all) {
         std::vector<Scalar>& scalars = parameter_named(all, qkv + "_scale").scalars;
         scalars.push_back(scalars.back());
       }},
  };
  for (const Damage& damage : damages) {
    const Topology topology = quantizing(topology_of(1, "tp=1"), parse_quantizer(damage.quantizer));
    for (const QuantizeAt side : kSides) {
      SCOPED_TRACE(fmt::format("{} {}", damage.what, name_of(side)));
      const Limits limits = at(capped(1 << 20), side);
      EXPECT_NO_THROW(make_rank_plan(make_plan(*family, topology, limits), *family, 1));
      const ListedFamily damaged = tampered(*family, damage.tamper);
      EXPECT_THROW(make_rank_plan(make_plan(damaged, topology, limits), damaged, 1), InternalError);
    }
  }
}

/// All that a share writes, said a second time.
std::vector<Move> writes_of(const RankPlan& rank_plan) {
  std::vector<Move> writes = rank_plan.moves;
  writes.insert(writes.end(), rank_plan.padding.begin(), rank_plan.padding.end());
  const auto add = [&](const MatrixPlace& place, const Box& box, std::int64_t element) {
    if (place.space != Space::kParameter) return;
    Move move{place.offset, place.pitch, 0, box.rows, box.cols * element, place.buffer, MoveOp::kCopy};
    move.layout = place.layout;
    move.row = place.row;
    move.byte = place.byte;
    writes.push_back(move);
  };
  for (const QuantMove& quant : rank_plan.quants) {
    add(quant.codes, quant.codes_box, 1);
    add(quant.scales, quant.scales_box, quant.scale_bytes);
  }
  for (std::uint32_t p = 0; p < rank_plan.parameters.size(); ++p) {
    for (const Scalar& scalar : rank_plan.parameters[p].scalars) {
      writes.push_back({scalar.offset, 4, 0, 1, 4, p, MoveOp::kCopy});
    }
  }
  return writes;
}

TEST(QuantizedProofs, EveryMissingAndDoubledWriteOfAShareIsFound) {
  const auto family = quantizable(false).family();
  for (const char* quantizer : {"fp8-block", "nvfp4"}) {
    for (const QuantizeAt side : kSides) {
      SCOPED_TRACE(fmt::format("{} {}", quantizer, name_of(side)));
      const Topology topology = quantizing(topology_of(1, "tp=1"), parse_quantizer(quantizer));
      const RankPlan rank_plan =
          make_rank_plan(make_plan(*family, topology, at(capped(1 << 20), side)), *family, 1);
      EXPECT_EQ(rank_plan.quants.empty(), side == QuantizeAt::kSource);
      const std::vector<Move> writes = writes_of(rank_plan);
      EXPECT_NO_THROW(prove_written_once(rank_plan.parameters, writes));
      for (std::size_t i = 0; i < writes.size(); ++i) {
        std::vector<Move> missing = writes;
        missing.erase(missing.begin() + static_cast<std::ptrdiff_t>(i));
        EXPECT_THROW(prove_written_once(rank_plan.parameters, missing), InternalError) << i;
        std::vector<Move> doubled = writes;
        doubled.push_back(writes[i]);
        EXPECT_THROW(prove_written_once(rank_plan.parameters, doubled), InternalError) << i;
      }
    }
  }
}

}  // namespace

}  // namespace weightcast
