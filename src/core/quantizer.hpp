#pragma once

#include <bit>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/float_bits.hpp"
#include "core/small_floats.hpp"

namespace weightcast {

// What a block of weights is quantised to, element by element. Host and device evaluate the same functions
// and must agree bit for bit, so there is no sum of a product in them that one of the two could contract,
// and no result depends on which NaN an operation makes.
//
// An `amax` is the largest magnitude of the elements in question, found by comparisons. It may be infinite;
// the scale is then what the formula makes of it, which is said where it matters. One that is no number
// counts as zero.

/// How codes and scales are kept.
enum class QuantScheme : std::uint8_t {
  kFp8Block,    ///< E4M3, an fp32 scale for each 128 × 128
  kFp8Tensor,   ///< E4M3, one fp32 scale
  kFp8Channel,  ///< E4M3, an fp32 scale for each row
  kMxfp8,       ///< E4M3, an E8M0 scale for each 32 of a row
  kNvfp4,       ///< E2M1, an E4M3 scale for each 16 of a row, and one fp32 scale over them
  kMxfp4,       ///< E2M1, an E8M0 scale for each 32 of a row
};

/// Whose arithmetic it is. The producers of one scheme differ in the last bit of a code, or in a scale.
enum class QuantRule : std::uint8_t {
  kSlime,            ///< fp8-block: amax of at least 1e-10, x * (1 / s)
  kDeepGemm,         ///< fp8-block: amax of at least 1e-4, x * (1 / s)
  kFlashInfer,       ///< fp8-block: s of at least 1e-12, x / s
  kUe8m0,            ///< fp8-block: as DeepGEMM, and s rounded up to a power of two
  kSglang,           ///< fp8-tensor: x * (448 / amax)
  kMiles,            ///< fp8-tensor: x / s, which is a bfloat16 before it is cast
  kDivide,           ///< fp8-channel: x / s
  kRoundUp,          ///< mxfp8, mxfp4: amax / largest code rounded up to a power of two
  kRoundUpTiesDown,  ///< mxfp4: as before, halfway codes to the lower magnitude
  kOcp,              ///< mxfp4: OCP MX v1.0, the exponent of amax less that of the largest code
  kTe,               ///< nvfp4: Transformer Engine, the scale over all follows from amax
  kUnit,             ///< nvfp4: the scale over all is 1
};

/// A scheme and one of its rules; other pairs are not made by parse_quantizer() and mean nothing. Structural,
/// so that a kernel can have it as a template parameter.
struct Quantizer {
  QuantScheme scheme = QuantScheme::kFp8Block;
  QuantRule rule = QuantRule::kSlime;

  friend constexpr bool operator==(const Quantizer& a, const Quantizer& b) = default;
};

/// What the codes of a block follow from.
struct BlockScale {
  std::uint32_t stored = 0;  ///< the bits kept beside the codes: of an fp32, or one byte
  float factor = 0;          ///< what elements are multiplied with, or divided by, as the rule says
};

/// What follows from a whole tensor, or from several that share it.
struct GlobalScale {
  float stored = 1;  ///< what is kept: weight_scale (fp8-tensor), weight_scale_2 (nvfp4)
  float factor = 1;  ///< what elements (fp8-tensor) or block scales (nvfp4) are made with
};

constexpr float kE4m3Largest = 448;
constexpr float kE2m1Largest = 6;
constexpr float kFloatLargest = 0x1.fffffep127f;

/// Codes in one byte; of two, that of the even column is in the lower half.
constexpr int codes_per_byte(QuantScheme scheme) {
  return scheme == QuantScheme::kNvfp4 || scheme == QuantScheme::kMxfp4 ? 2 : 1;
}

/// Rows of elements under one block scale; 0: all of the tensor's.
constexpr std::int64_t block_rows(QuantScheme scheme) {
  if (scheme == QuantScheme::kFp8Block) return 128;
  return scheme == QuantScheme::kFp8Tensor ? 0 : 1;
}

/// Columns of elements under one block scale; 0: all of the tensor's.
constexpr std::int64_t block_cols(QuantScheme scheme) {
  if (scheme == QuantScheme::kFp8Block) return 128;
  if (scheme == QuantScheme::kMxfp8 || scheme == QuantScheme::kMxfp4) return 32;
  return scheme == QuantScheme::kNvfp4 ? 16 : 0;
}

/// Rows and columns of elements that are not to be divided: those of a block and of a byte of codes.
constexpr std::int64_t unit_rows(QuantScheme scheme) {
  return block_rows(scheme) > 1 ? block_rows(scheme) : 1;
}
constexpr std::int64_t unit_cols(QuantScheme scheme) {
  return block_cols(scheme) > codes_per_byte(scheme) ? block_cols(scheme) : codes_per_byte(scheme);
}

/// True where one scale is over the whole tensor, and its amax needed before any block.
constexpr bool has_global(QuantScheme scheme) {
  return scheme == QuantScheme::kFp8Tensor || scheme == QuantScheme::kNvfp4;
}

/// Bytes kept for each block; 0: there is no block scale.
constexpr int block_scale_bytes(QuantScheme scheme) {
  if (scheme == QuantScheme::kFp8Block || scheme == QuantScheme::kFp8Channel) return 4;
  return scheme == QuantScheme::kFp8Tensor ? 0 : 1;
}

/// True where elements are divided by their factor, false where they are multiplied with it.
constexpr bool divides(QuantRule rule) {
  return rule == QuantRule::kFlashInfer || rule == QuantRule::kDivide || rule == QuantRule::kMiles;
}

/// The larger one; `least` where `value` is no number.
constexpr float at_least(float value, float least) {
  return value > least ? value : least;
}

/// 1 / value, for values that are not negative: infinity for zero.
constexpr float reciprocal(float value) {
  return value > 0 ? 1.0f / value : std::bit_cast<float>(0x7f800000u);
}

/// The scale over a tensor of magnitudes up to `amax`; 1 where the scheme has none.
/// fp8-tensor: SGLang's input_to_float8 (an infinite amax gives factor 0 and an infinite scale), or miles'
/// quotient. nvfp4: Transformer Engine's global encode scale, which is 1 if amax is zero or infinite.
constexpr GlobalScale global_scale(Quantizer quantizer, float amax) {
  if (quantizer.scheme == QuantScheme::kFp8Tensor) {
    const float floored = at_least(amax, 1e-12f);
    if (quantizer.rule == QuantRule::kMiles) {
      const float scale = floored / kE4m3Largest;
      return {scale, scale};
    }
    const float factor = kE4m3Largest / floored;
    return {reciprocal(factor), factor};
  }
  if (quantizer.scheme == QuantScheme::kNvfp4 && quantizer.rule == QuantRule::kTe && amax > 0) {
    const float quotient = (kE4m3Largest * kE2m1Largest) / amax;
    const float encode = quotient < kFloatLargest ? quotient : kFloatLargest;
    if (encode > 0) return {1.0f / encode, encode};
  }
  return {1.0f, 1.0f};
}

/// The E8M0 scale of an MX block. Bytes stay below that of NaN: a block with an infinity has the largest
/// scale. The factor is the reciprocal, which is exact, so that multiplying is dividing by the scale.
constexpr BlockScale e8m0_block_scale(std::uint32_t byte) {
  const std::uint32_t clamped = byte < 254u ? byte : 254u;
  return {clamped, e8m0_value(static_cast<std::uint8_t>(254u - clamped))};
}

/// The scale of a block of magnitudes up to `amax`. `global` is used by the schemes that have one; with
/// fp8-tensor the factor is the global one and nothing is stored. An infinite amax makes an infinite scale in
/// fp8-block and fp8-channel, under which nothing decodes to a number; with kUe8m0 and in the MX schemes it
/// makes 2^127 (kOcp: 2^126).
constexpr BlockScale block_scale(Quantizer quantizer, float amax, GlobalScale global) {
  switch (quantizer.scheme) {
    case QuantScheme::kFp8Tensor:
      return {0, global.factor};
    case QuantScheme::kMxfp8:
      return e8m0_block_scale(e8m0_ceil(at_least(amax, 0) / kE4m3Largest));
    case QuantScheme::kMxfp4: {
      const float floored = at_least(amax, 0);
      if (quantizer.rule != QuantRule::kOcp) return e8m0_block_scale(e8m0_ceil(floored / kE2m1Largest));
      // The exponent of 6 is 2. What is below the least scale has it all the same.
      const std::uint32_t exponent = std::bit_cast<std::uint32_t>(floored) >> 23;
      return e8m0_block_scale(exponent > 2u ? exponent - 2u : 0u);
    }
    case QuantScheme::kNvfp4: {
      if (!(amax > 0)) return {0, 0.0f};
      // Both Transformer Engine and FlashInfer multiply with a rounded 1/6.
      const std::uint8_t code = e4m3_bits(amax * (global.factor * (1.0f / kE2m1Largest)));
      // A block that is small beside the others: its scale is 0, whatever the codes.
      const float inverse = reciprocal(e4m3_value(code) * global.stored);
      return {code, inverse < kFloatLargest ? inverse : kFloatLargest};
    }
    case QuantScheme::kFp8Block:
    case QuantScheme::kFp8Channel:
      break;
  }
  if (quantizer.rule == QuantRule::kUe8m0) {
    // DeepGEMM's per_block_cast_to_fp8 with ceil_to_ue8m0: the power of two is kept as an fp32. The floor
    // keeps it far above what DeepGEMM clamps bytes to.
    const BlockScale power = e8m0_block_scale(e8m0_ceil(at_least(amax, 1e-4f) / kE4m3Largest));
    return {power.stored << 23, power.factor};
  }
  float scale = 0;
  if (quantizer.rule == QuantRule::kFlashInfer) {
    scale = at_least(at_least(amax, 0) / kE4m3Largest, 1e-12f);
  } else {
    const float least = quantizer.rule == QuantRule::kSlime      ? 1e-10f
                        : quantizer.rule == QuantRule::kDeepGemm ? 1e-4f
                                                                 : 1e-12f;
    scale = at_least(amax, least) / kE4m3Largest;
  }
  return {std::bit_cast<std::uint32_t>(scale), divides(quantizer.rule) ? scale : 1.0f / scale};
}

/// The code of one element of a block: an E4M3 byte, or four bits of E2M1. Magnitudes beyond the largest code
/// saturate. A NaN becomes E4M3's NaN, or 6, with the sign of `value`; so does in fp8 an infinity under an
/// infinite scale.
constexpr std::uint8_t encode(Quantizer quantizer, float value, BlockScale scale) {
  float scaled = divides(quantizer.rule) ? value / scale.factor : value * scale.factor;
  // In torch a tensor of bfloat16 over a scalar of fp32 is a bfloat16.
  if (quantizer.rule == QuantRule::kMiles) scaled = bf16_value(bf16_bits(scaled));
  // Machines differ in the sign of a NaN that they make.
  const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(scaled) & 0x7fffffffu;
  const std::uint32_t sign = std::bit_cast<std::uint32_t>(value) & 0x80000000u;
  scaled = std::bit_cast<float>(magnitude | sign);
  if (codes_per_byte(quantizer.scheme) == 1) return e4m3_bits(scaled);
  return quantizer.rule == QuantRule::kRoundUpTiesDown ? e2m1_bits_ties_down(scaled) : e2m1_bits(scaled);
}

/// The value of a code, given what is stored with it; each scale is used only where the scheme has it.
/// Rounded once, from the exact product with nvfp4's global scale or exactly.
constexpr float decode(Quantizer quantizer, std::uint8_t code, std::uint32_t stored_block_scale,
                       float stored_global) {
  const auto byte = static_cast<std::uint8_t>(stored_block_scale);
  switch (quantizer.scheme) {
    case QuantScheme::kFp8Tensor:
      return e4m3_value(code) * stored_global;
    case QuantScheme::kMxfp8:
      return e4m3_value(code) * e8m0_value(byte);
    case QuantScheme::kNvfp4:
      return e2m1_value(code) * e4m3_value(byte) * stored_global;
    case QuantScheme::kMxfp4:
      return e2m1_value(code) * e8m0_value(byte);
    case QuantScheme::kFp8Block:
    case QuantScheme::kFp8Channel:
      break;
  }
  return e4m3_value(code) * std::bit_cast<float>(stored_block_scale);
}

/// Reads the value of --quantize: a scheme (`fp8-block`), which means its first rule, or a scheme and a rule
/// (`fp8-block:ue8m0`). UsageError for anything else; it lists what could have been meant.
Quantizer parse_quantizer(std::string_view text);

/// The shortest text that parse_quantizer() reads as `quantizer`.
std::string quantizer_name(Quantizer quantizer);

/// The names of all quantizers, scheme by scheme, the default rule of each first.
std::vector<std::string> quantizer_names();

}  // namespace weightcast
