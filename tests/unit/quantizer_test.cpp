#include "core/quantizer.hpp"

#include <gtest/gtest.h>

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/small_floats.hpp"

namespace weightcast {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Usable in constant expressions, and a quantizer as a template parameter: kernels are made so.
static_assert(e4m3_bits(448.0f) == 0x7e && e2m1_bits(-6.0f) == 15 && e8m0_ceil(3.0f) == 129);
template <Quantizer Q>
constexpr std::uint8_t code_of(float value, float amax) {
  return encode(Q, value, block_scale(Q, amax, global_scale(Q, amax)));
}
static_assert(code_of<Quantizer{QuantScheme::kFp8Block, QuantRule::kSlime}>(1.0f, 1.0f) == 0x7e);
static_assert(code_of<Quantizer{QuantScheme::kNvfp4, QuantRule::kTe}>(-1.0f, 1.0f) == 15);

nlohmann::json golden(const std::string& name) {
  std::ifstream file(fmt::format("{}/golden/{}.json", WEIGHTCAST_TEST_DATA, name));
  EXPECT_TRUE(file.good()) << name;
  return nlohmann::json::parse(file);
}

std::uint32_t bits_of(float value) {
  return std::bit_cast<std::uint32_t>(value);
}

float value_of(std::uint32_t bits) {
  return std::bit_cast<float>(bits);
}

/// The value of E4M3FN bits, as the standard's table says it.
double e4m3_said(int code) {
  const int exponent = (code >> 3) & 15;
  const int fraction = code & 7;
  const double magnitude = exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

double e2m1_said(int code) {
  const std::vector<double> magnitudes{0, 0.5, 1, 1.5, 2, 3, 4, 6};
  const double magnitude = magnitudes[static_cast<std::size_t>(code & 7)];
  return (code & 8) != 0 ? -magnitude : magnitude;
}

/// Of the codes 0..largest, ascending, the nearest to |value|; of two, the even or the lower one. In double
/// every distance between a float and a code that matters is exact.
template <typename Said>
int nearest(float value, int largest, bool ties_down, Said said) {
  const double magnitude = std::fabs(static_cast<double>(value));
  if (magnitude >= said(largest)) return largest;
  int low = 0;
  while (said(low + 1) <= magnitude) ++low;
  const double middle = (said(low) + said(low + 1)) / 2;
  if (magnitude != middle) return magnitude < middle ? low : low + 1;
  return ties_down || low % 2 == 0 ? low : low + 1;
}

void expect_nearest(float value) {
  SCOPED_TRACE(fmt::format("{:#x} {}", bits_of(value), value));
  const bool negative = std::signbit(value);
  ASSERT_EQ(e4m3_bits(value), nearest(value, 0x7e, false, e4m3_said) + (negative ? 0x80 : 0));
  ASSERT_EQ(e2m1_bits(value), nearest(value, 7, false, e2m1_said) + (negative ? 8 : 0));
  ASSERT_EQ(e2m1_bits_ties_down(value), nearest(value, 7, true, e2m1_said) + (negative ? 8 : 0));
}

TEST(SmallFloats, EveryCodeHasItsValueAndLeadsBack) {
  for (int code = 0; code < 256; ++code) {
    const auto byte = static_cast<std::uint8_t>(code);
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(e4m3_value(byte)));
    } else {
      EXPECT_EQ(e4m3_value(byte), e4m3_said(code)) << code;
    }
    EXPECT_EQ(e4m3_bits(e4m3_value(byte)), code);
    EXPECT_EQ(std::signbit(e4m3_value(byte)), code >= 128);
  }
  for (int code = 0; code < 16; ++code) {
    const auto byte = static_cast<std::uint8_t>(code);
    EXPECT_EQ(e2m1_value(byte), e2m1_said(code)) << code;
    EXPECT_EQ(std::signbit(e2m1_value(byte)), code >= 8);
    EXPECT_EQ(e2m1_bits(e2m1_value(byte)), code);
    EXPECT_EQ(e2m1_bits_ties_down(e2m1_value(byte)), code);
    EXPECT_EQ(e2m1_value(static_cast<std::uint8_t>(byte | 0xf0)), e2m1_said(code));
  }
  for (int byte = 0; byte < 255; ++byte) {
    EXPECT_EQ(e8m0_value(static_cast<std::uint8_t>(byte)), std::ldexp(1.0, byte - 127)) << byte;
    // That of the denormal is not found again: its exponent reads as the one above.
    EXPECT_EQ(e8m0_ceil(e8m0_value(static_cast<std::uint8_t>(byte))), std::max(byte, 1));
  }
  EXPECT_TRUE(std::isnan(e8m0_value(255)));
}

TEST(SmallFloats, EveryBfloat16IsRoundedToTheNearest) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    if (!std::isnan(value_of(bits << 16))) expect_nearest(value_of(bits << 16));
  }
}

TEST(SmallFloats, WhatIsHalfwayAndItsNeighboursAreRoundedToTheNearest) {
  const auto around = [](double middle) {
    const auto value = static_cast<float>(middle);
    for (const float sign : {1.0f, -1.0f}) {
      expect_nearest(sign * value);
      expect_nearest(sign * std::nextafter(value, 0.0f));
      expect_nearest(sign * std::nextafter(value, kInfinity));
    }
  };
  for (int code = 0; code < 0x7e; ++code) {
    around((e4m3_said(code) + e4m3_said(code + 1)) / 2);
    around(e4m3_said(code));
  }
  for (int code = 0; code < 7; ++code) {
    around((e2m1_said(code) + e2m1_said(code + 1)) / 2);
    around(e2m1_said(code));
  }
  for (const double value : {448.0, 464.0, 480.0, 6.0, 7.0, 8.0, 1e30}) around(value);
}

TEST(SmallFloats, AnyFloatIsRoundedToTheNearest) {
  std::mt19937 random(7);
  for (int i = 0; i < 100'000; ++i) {
    const auto bits = static_cast<std::uint32_t>(random());
    if (!std::isnan(value_of(bits))) expect_nearest(value_of(bits));
    // Of these, most are within the range of the codes.
    expect_nearest(value_of((bits & 0x807fffffu) | ((112u + (bits >> 8) % 26u) << 23)));
  }
}

TEST(SmallFloats, EndsOfTheRange) {
  for (const std::uint32_t magnitude : {0x7fc00000u, 0x7f800001u, 0x7fffffffu}) {
    EXPECT_EQ(e4m3_bits(value_of(magnitude)), 0x7f);
    EXPECT_EQ(e4m3_bits(value_of(magnitude | 0x80000000u)), 0xff);
    EXPECT_EQ(e2m1_bits(value_of(magnitude)), 7);
    EXPECT_EQ(e2m1_bits(value_of(magnitude | 0x80000000u)), 15);
    EXPECT_EQ(e2m1_bits_ties_down(value_of(magnitude)), 7);
    EXPECT_EQ(e8m0_ceil(value_of(magnitude)), 255);
  }
  expect_nearest(kInfinity);
  expect_nearest(-kInfinity);
  EXPECT_EQ(e4m3_bits(kInfinity), 0x7e);
  for (const std::uint32_t denormal : {0u, 1u, 0x007fffffu, 0x00800000u}) {
    expect_nearest(value_of(denormal));
    expect_nearest(value_of(denormal | 0x80000000u));
  }
  EXPECT_EQ(e8m0_ceil(kInfinity), 255);
  EXPECT_EQ(e8m0_ceil(std::numeric_limits<float>::max()), 255);
  EXPECT_EQ(e8m0_ceil(-3.0f), 129);
}

TEST(SmallFloats, GoldenTables) {
  const nlohmann::json tables = golden("fp_tables");
  ASSERT_EQ(tables.at("e4m3_pos_values").size(), 127u);
  for (std::size_t code = 0; code < 127; ++code) {
    EXPECT_EQ(e4m3_value(static_cast<std::uint8_t>(code)), tables["e4m3_pos_values"][code].get<float>());
  }
  ASSERT_EQ(tables.at("e2m1_values").size(), 16u);
  for (std::size_t code = 0; code < 16; ++code) {
    EXPECT_EQ(e2m1_value(static_cast<std::uint8_t>(code)), tables["e2m1_values"][code].get<float>());
  }
  ASSERT_EQ(tables.at("e4m3_encode_examples").size(), 15u);
  for (const auto& example : tables["e4m3_encode_examples"]) {
    EXPECT_EQ(e4m3_bits(example[0].get<float>()), example[1].get<int>()) << example[0];
  }
  ASSERT_EQ(tables.at("e2m1_ties").size(), 12u);
  for (const auto& tie : tables["e2m1_ties"]) {
    EXPECT_EQ(e2m1_bits(tie[0].get<float>()), tie[1].get<int>()) << tie[0];
    // The vectors' zero without a sign is DeepGEMM's.
    const int down = tie[0].get<float>() == 0 ? 8 : tie[2].get<int>();
    EXPECT_EQ(e2m1_bits_ties_down(tie[0].get<float>()), down) << tie[0];
  }
}

TEST(SmallFloats, GoldenCeilingOfDeepGemm) {
  const nlohmann::json vectors = golden("deepgemm_ue8m0");
  ASSERT_EQ(vectors.at("ceil_to_ue8m0").size(), 12u);
  for (const auto& c : vectors["ceil_to_ue8m0"]) {
    // DeepGEMM clamps the byte to 1, which matters for zero alone.
    const int byte = std::max<int>(1, e8m0_ceil(value_of(c["bits_in"].get<std::uint32_t>())));
    EXPECT_EQ(byte, c["exponent_byte"].get<int>()) << c["x"];
    EXPECT_EQ(e8m0_value(static_cast<std::uint8_t>(byte)), c["out"].get<float>());
  }
}

struct Matrix {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::vector<float> values;
};

struct Quantized {
  GlobalScale global;
  std::vector<std::uint32_t> scales;
  std::vector<int> codes;  // one an element, not packed
};

float amax_of(const std::vector<float>& values) {
  float amax = 0;
  for (const float value : values) amax = std::fabs(value) > amax ? std::fabs(value) : amax;
  return amax;
}

/// Quantises block by block; the blocks of the edges are smaller.
Quantized quantize(Quantizer quantizer, const Matrix& matrix, std::int64_t block_rows,
                   std::int64_t block_cols) {
  Quantized result;
  result.global = global_scale(quantizer, amax_of(matrix.values));
  result.codes.resize(matrix.values.size());
  for (std::int64_t row = 0; row < matrix.rows; row += block_rows) {
    for (std::int64_t col = 0; col < matrix.cols; col += block_cols) {
      std::vector<std::size_t> places;
      std::vector<float> values;
      for (std::int64_t r = row; r < std::min(row + block_rows, matrix.rows); ++r) {
        for (std::int64_t c = col; c < std::min(col + block_cols, matrix.cols); ++c) {
          places.push_back(static_cast<std::size_t>(r * matrix.cols + c));
          values.push_back(matrix.values.at(places.back()));
        }
      }
      const BlockScale scale = block_scale(quantizer, amax_of(values), result.global);
      result.scales.push_back(scale.stored);
      for (std::size_t i = 0; i < places.size(); ++i) {
        result.codes.at(places[i]) = encode(quantizer, values[i], scale);
      }
    }
  }
  return result;
}

Quantized quantize(Quantizer quantizer, const Matrix& matrix) {
  const std::int64_t rows = block_rows(quantizer.scheme);
  const std::int64_t cols = block_cols(quantizer.scheme);
  return quantize(quantizer, matrix, rows == 0 ? matrix.rows : rows, cols == 0 ? matrix.cols : cols);
}

Matrix matrix_of(const nlohmann::json& vectors) {
  Matrix matrix{vectors["rows"], vectors["cols"], {}};
  for (const auto& bits : vectors["x_bf16_bits"]) {
    matrix.values.push_back(bf16_value(bits.get<std::uint16_t>()));
  }
  EXPECT_EQ(static_cast<std::int64_t>(matrix.values.size()), matrix.rows * matrix.cols);
  return matrix;
}

std::vector<int> packed(const std::vector<int>& codes) {
  std::vector<int> bytes;
  for (std::size_t i = 0; i < codes.size(); i += 2) bytes.push_back(codes[i] | (codes[i + 1] << 4));
  return bytes;
}

std::vector<int> without_sign_of_zero(std::vector<int> codes) {
  for (int& code : codes) code = code == 8 ? 0 : code;
  return codes;
}

using Codes = std::vector<int>;
using Bits = std::vector<std::uint32_t>;

TEST(Quantizer, GoldenFp8Blocks) {
  const nlohmann::json vectors = golden("fp8_quant");
  const Matrix matrix = matrix_of(vectors);
  const std::vector<std::pair<std::string, std::string>> variants{
      {"fp8-block:slime", "slime_triton"},
      {"fp8-block:deepgemm", "deepgemm"},
      {"fp8-block:ue8m0", "deepgemm_ue8m0"},
      {"fp8-block:flashinfer", "flashinfer_prepare"}};
  ASSERT_EQ(vectors.at("variants").size(), variants.size());
  for (const auto& [name, variant] : variants) {
    SCOPED_TRACE(name);
    const Quantized result = quantize(parse_quantizer(name), matrix, vectors["block"][0].get<std::int64_t>(),
                                      vectors["block"][1].get<std::int64_t>());
    EXPECT_EQ(result.scales, vectors["variants"].at(variant)["scale_inv_f32_bits"].get<Bits>());
    EXPECT_EQ(result.codes, vectors["variants"].at(variant)["q"].get<Codes>());
  }
}

TEST(Quantizer, GoldenFp8TensorsAndChannels) {
  const nlohmann::json vectors = golden("fp8_quant");
  const Matrix matrix = matrix_of(vectors);
  const Quantized miles = quantize(parse_quantizer("fp8-tensor:miles"), matrix);
  EXPECT_EQ(Bits{bits_of(miles.global.stored)}, vectors["per_tensor"]["scale_f32_bits"].get<Bits>());
  EXPECT_EQ(miles.codes, vectors["per_tensor"]["q"].get<Codes>());
  const Quantized sglang = quantize(parse_quantizer("fp8-tensor:sglang"), matrix);
  EXPECT_EQ(Bits{bits_of(sglang.global.stored)}, vectors["per_tensor"]["scale_sglang_f32_bits"].get<Bits>());
  EXPECT_EQ(sglang.codes, vectors["per_tensor"]["q_sglang"].get<Codes>());
  const Quantized channel = quantize(parse_quantizer("fp8-channel"), matrix);
  EXPECT_EQ(channel.scales, vectors["per_channel"]["scale_f32_bits"].get<Bits>());
  EXPECT_EQ(channel.codes, vectors["per_channel"]["q"].get<Codes>());
}

TEST(Quantizer, GoldenMx) {
  const nlohmann::json vectors = golden("mxfp4_mxfp8_quant");
  const Matrix matrix = matrix_of(vectors);
  const auto& up = vectors["mxfp4"]["round_up_amax_over_max"];
  const Quantized round_up = quantize(parse_quantizer("mxfp4:round-up"), matrix);
  EXPECT_EQ(round_up.scales, up["scale_e8m0"].get<Bits>());
  EXPECT_EQ(round_up.codes, up["codes_rne"].get<Codes>());
  EXPECT_EQ(packed(round_up.codes), up["packed_rne"].get<Codes>());
  const Quantized ties_down = quantize(parse_quantizer("mxfp4:round-up-ties-down"), matrix);
  EXPECT_EQ(ties_down.scales, up["scale_e8m0"].get<Bits>());
  EXPECT_EQ(ties_down.codes, up["codes_ties_down"].get<Codes>());
  const auto& floor = vectors["mxfp4"]["ocp_floor"];
  const Quantized ocp = quantize(parse_quantizer("mxfp4:ocp"), matrix);
  EXPECT_EQ(ocp.scales, floor["scale_e8m0"].get<Bits>());
  EXPECT_EQ(ocp.codes, floor["codes_rne"].get<Codes>());
  EXPECT_EQ(packed(ocp.codes), floor["packed_rne"].get<Codes>());
  const Quantized mxfp8 = quantize(parse_quantizer("mxfp8"), matrix);
  EXPECT_EQ(mxfp8.scales, vectors["mxfp8"]["round_up"]["scale_e8m0"].get<Bits>());
  EXPECT_EQ(mxfp8.codes, vectors["mxfp8"]["round_up"]["q"].get<Codes>());
}

TEST(Quantizer, GoldenNvfp4) {
  const nlohmann::json vectors = golden("nvfp4_quant");
  const Matrix matrix = matrix_of(vectors);
  EXPECT_EQ(Bits{bits_of(amax_of(matrix.values))}, vectors["amax_f32_bits"].get<Bits>());
  const Quantized te = quantize(parse_quantizer("nvfp4:te"), matrix);
  EXPECT_EQ(Bits{bits_of(te.global.factor)}, vectors["global_encode_f32_bits"].get<Bits>());
  EXPECT_EQ(Bits{bits_of(te.global.stored)}, vectors["weight_scale_2_f32_bits"].get<Bits>());
  EXPECT_EQ(te.scales, vectors["block_scale_e4m3"].get<Bits>());
  EXPECT_EQ(te.codes, vectors["codes"].get<Codes>());
  EXPECT_EQ(packed(te.codes), vectors["packed"].get<Codes>());
  const Quantized unit = quantize(parse_quantizer("nvfp4:unit"), matrix);
  EXPECT_EQ(unit.global.stored, 1.0f);
  EXPECT_EQ(unit.scales, vectors["global_scale_1"]["block_scale_e4m3"].get<Bits>());
  EXPECT_EQ(without_sign_of_zero(unit.codes), vectors["global_scale_1"]["codes_ref"].get<Codes>());
}

TEST(Quantizer, WhatIsDecodedIsNear) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  for (const std::string& name : quantizer_names()) {
    SCOPED_TRACE(name);
    const Quantizer quantizer = parse_quantizer(name);
    const bool four_bits = codes_per_byte(quantizer.scheme) == 2;
    Matrix matrix{150, 288, {}};
    for (std::int64_t i = 0; i < matrix.rows * matrix.cols; ++i) {
      // Rows of magnitudes that differ by up to 2^15.
      const auto exponent = static_cast<int>(i / matrix.cols % 16) - 8;
      const bool spread = quantizer.scheme != QuantScheme::kNvfp4;
      matrix.values.push_back(bf16_value(bf16_bits(std::ldexp(normal(random), spread ? exponent : 0))));
    }
    const Quantized result = quantize(quantizer, matrix);
    const std::int64_t rows = block_rows(quantizer.scheme) == 0 ? matrix.rows : block_rows(quantizer.scheme);
    const std::int64_t cols = block_cols(quantizer.scheme) == 0 ? matrix.cols : block_cols(quantizer.scheme);
    const std::int64_t across = (matrix.cols + cols - 1) / cols;
    // The code of 1, the least step of codes, and half a step of the larger codes for each unit of value.
    const auto one = static_cast<std::uint8_t>(four_bits ? 2 : 0x38);
    const double least = four_bits ? 0.5 : 0x1p-9;
    const double relative = four_bits ? 0.25 : 0x1p-4;
    const double beforehand = quantizer.rule == QuantRule::kMiles ? 0x1p-8 : 0.0;
    for (std::int64_t i = 0; i < matrix.rows * matrix.cols; ++i) {
      const auto at = static_cast<std::size_t>(i);
      const auto block = static_cast<std::size_t>(i / matrix.cols / rows * across + i % matrix.cols / cols);
      const std::uint32_t stored = result.scales.at(block);
      const double scale = decode(quantizer, one, stored, result.global.stored);
      const double value = matrix.values[at];
      const double decoded =
          decode(quantizer, static_cast<std::uint8_t>(result.codes[at]), stored, result.global.stored);
      const double bound =
          std::max(scale * least / 2, std::fabs(value) * relative) + std::fabs(value) * beforehand;
      ASSERT_LE(std::fabs(decoded - value), bound * (1 + 1e-6)) << value << " at " << i;
    }
  }
}

TEST(Quantizer, BlocksAndBytesOfTheSchemes) {
  struct Row {
    QuantScheme scheme;
    std::int64_t rows, cols;
    int bytes, codes;
    bool global;
  };
  for (const Row& row :
       {Row{QuantScheme::kFp8Block, 128, 128, 4, 1, false}, Row{QuantScheme::kFp8Tensor, 0, 0, 0, 1, true},
        Row{QuantScheme::kFp8Channel, 1, 0, 4, 1, false}, Row{QuantScheme::kMxfp8, 1, 32, 1, 1, false},
        Row{QuantScheme::kNvfp4, 1, 16, 1, 2, true}, Row{QuantScheme::kMxfp4, 1, 32, 1, 2, false}}) {
    EXPECT_EQ(block_rows(row.scheme), row.rows);
    EXPECT_EQ(block_cols(row.scheme), row.cols);
    EXPECT_EQ(block_scale_bytes(row.scheme), row.bytes);
    EXPECT_EQ(codes_per_byte(row.scheme), row.codes);
    EXPECT_EQ(has_global(row.scheme), row.global);
  }
}

TEST(Quantizer, BlocksOfZerosAreZeros) {
  for (const std::string& name : quantizer_names()) {
    SCOPED_TRACE(name);
    const Quantizer quantizer = parse_quantizer(name);
    for (const float amax : {0.0f, kNaN}) {
      const GlobalScale global = global_scale(quantizer, amax);
      const BlockScale scale = block_scale(quantizer, amax, global);
      EXPECT_TRUE(std::isfinite(global.stored));
      EXPECT_TRUE(std::isfinite(scale.factor));
      EXPECT_EQ(encode(quantizer, 0.0f, scale), 0);
      EXPECT_EQ(encode(quantizer, -0.0f, scale), codes_per_byte(quantizer.scheme) == 2 ? 8 : 0x80);
      EXPECT_EQ(decode(quantizer, 0, scale.stored, global.stored), 0.0f);
    }
  }
}

TEST(Quantizer, TheEndsOfFloatsTrapNowhere) {
  const float largest = std::numeric_limits<float>::max();
  const float least = std::numeric_limits<float>::denorm_min();
  for (const std::string& name : quantizer_names()) {
    const Quantizer quantizer = parse_quantizer(name);
    const int nan_code = codes_per_byte(quantizer.scheme) == 2 ? 7 : 0x7f;
    const int sign = codes_per_byte(quantizer.scheme) == 2 ? 8 : 0x80;
    for (const float amax : {least, 1e-38f, 1.0f, 1e38f, largest, kInfinity}) {
      SCOPED_TRACE(fmt::format("{} {}", name, amax));
      const GlobalScale global = global_scale(quantizer, amax);
      const BlockScale scale = block_scale(quantizer, amax, global);
      EXPECT_FALSE(std::isnan(global.factor) || std::isnan(global.stored) || std::isnan(scale.factor));
      // The byte of an E8M0 that is NaN is not used.
      EXPECT_TRUE(block_scale_bytes(quantizer.scheme) != 1 || scale.stored < 255u);
      EXPECT_EQ(encode(quantizer, kNaN, scale), nan_code);
      EXPECT_EQ(encode(quantizer, -kNaN, scale), nan_code + sign);
      for (const float value : {0.0f, least, amax}) {
        const int code = encode(quantizer, value, scale);
        EXPECT_EQ(encode(quantizer, -value, scale), code + sign);
        EXPECT_TRUE(code < nan_code || codes_per_byte(quantizer.scheme) == 2 || value == kInfinity);
      }
      // The largest of a block comes back nearly as it was, unless its amax was floored. That of floats may
      // be rounded up to more than there is.
      if (amax >= 1e-4f && amax < largest && quantizer.rule != QuantRule::kUnit) {
        const float decoded = decode(quantizer, encode(quantizer, amax, scale), scale.stored, global.stored);
        EXPECT_NEAR(decoded / amax, 1.0f, nan_code == 7 ? 0.26f : 0.07f);
      }
    }
  }
}

TEST(Quantizer, InfinityMakesTheScaleThatItsFormulaSays) {
  const auto scale_of = [](const char* name) {
    const Quantizer quantizer = parse_quantizer(name);
    return block_scale(quantizer, kInfinity, global_scale(quantizer, kInfinity)).stored;
  };
  for (const char* name : {"fp8-block", "fp8-block:deepgemm", "fp8-block:flashinfer", "fp8-channel"}) {
    EXPECT_EQ(scale_of(name), bits_of(kInfinity)) << name;
    const Quantizer quantizer = parse_quantizer(name);
    const BlockScale scale = block_scale(quantizer, kInfinity, {});
    EXPECT_EQ(encode(quantizer, -kInfinity, scale), 0xff);
    EXPECT_TRUE(std::isnan(decode(quantizer, encode(quantizer, 1.0f, scale), scale.stored, 1.0f)));
  }
  EXPECT_EQ(scale_of("fp8-block:ue8m0"), 254u << 23);
  EXPECT_EQ(scale_of("mxfp8"), 254u);
  EXPECT_EQ(scale_of("mxfp4"), 254u);
  EXPECT_EQ(scale_of("mxfp4:ocp"), 253u);
  EXPECT_EQ(scale_of("nvfp4"), 0x7eu);
  for (const char* name : {"fp8-tensor:sglang", "fp8-tensor:miles"}) {
    EXPECT_EQ(global_scale(parse_quantizer(name), kInfinity).stored, kInfinity) << name;
  }
  EXPECT_EQ(global_scale(parse_quantizer("nvfp4"), kInfinity).stored, 1.0f);
}

TEST(Quantizer, QuotientsOfMilesAreBfloat16First) {
  // 1 + 2^-4 is halfway between two codes; what is little more is rounded to it and then to the even one.
  const Quantizer quantizer = parse_quantizer("fp8-tensor:miles");
  const BlockScale scale = block_scale(quantizer, 448.0f, global_scale(quantizer, 448.0f));
  EXPECT_EQ(encode(quantizer, 1.0635f, scale), 0x38);
  EXPECT_EQ(encode(parse_quantizer("fp8-tensor:sglang"), 1.0635f, {0, 1.0f}), 0x39);
}

TEST(Quantizer, NamesLeadBack) {
  const std::vector<std::string> names = quantizer_names();
  EXPECT_EQ(names.size(), 13u);
  EXPECT_EQ(std::set<std::string>(names.begin(), names.end()).size(), names.size());
  for (const std::string& name : names) EXPECT_EQ(quantizer_name(parse_quantizer(name)), name);
  EXPECT_EQ(parse_quantizer("fp8-block:slime"), parse_quantizer("fp8-block"));
  EXPECT_EQ(quantizer_name(parse_quantizer("mxfp4:round-up")), "mxfp4");
  EXPECT_EQ(parse_quantizer("fp8-block:ue8m0"), (Quantizer{QuantScheme::kFp8Block, QuantRule::kUe8m0}));
  EXPECT_EQ(parse_quantizer("mxfp4:round-up-ties-down"),
            (Quantizer{QuantScheme::kMxfp4, QuantRule::kRoundUpTiesDown}));
  EXPECT_THROW(quantizer_name({QuantScheme::kMxfp8, QuantRule::kTe}), InternalError);
}

TEST(Quantizer, WhatIsNoQuantizerIsNamedAndSoAreThoseThereAre) {
  const auto error = [](const char* text) -> std::string {
    try {
      parse_quantizer(text);
    } catch (const UsageError& caught) {
      return caught.what();
    }
    return "none";
  };
  for (const char* text : {"", "fp8", "FP8-block", ":slime", "slime"}) {
    EXPECT_EQ(error(text), fmt::format("--quantize {}: unknown; choose one of fp8-block, fp8-tensor, "
                                       "fp8-channel, mxfp8, nvfp4, mxfp4",
                                       text));
  }
  EXPECT_EQ(
      error("fp8-block:te"),
      "--quantize fp8-block:te: unknown variant of fp8-block; choose one of slime, deepgemm, flashinfer, "
      "ue8m0");
  EXPECT_EQ(error("nvfp4:"), "--quantize nvfp4:: unknown variant of nvfp4; choose one of te, unit");
}

}  // namespace

}  // namespace weightcast
