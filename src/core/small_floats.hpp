#pragma once

#include <bit>
#include <cstdint>

namespace weightcast {

// The floats of one byte and less that weights are quantised to. All of them are rounded by integer
// arithmetic, and one by a sum that no product can reach: a compiler cannot contract it into another
// rounding, and a device that flushes denormals comes to the same bits.

/// The bits of `value` as E4M3FN (bias 7, no infinity), rounded to nearest even. What lies beyond ±448
/// saturates there, infinity too, as the devices' conversion with `satfinite` does; a NaN stays one (0x7f)
/// and keeps its sign. Without branches, so that compilers make vectors of a loop of it.
constexpr std::uint8_t e4m3_bits(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  constexpr std::uint32_t kLargest = 0x43e00000u;  // 448
  const std::uint32_t clamped = magnitude < kLargest ? magnitude : kLargest;
  constexpr std::uint32_t kBiases = (127u - 7u) << 23;
  const std::uint32_t normal = (clamped - kBiases + 0x7ffffu + ((clamped >> 20) & 1u)) >> 20;
  // Below 2^-6 a code counts units of 2^-9, which are the last place of a float from 2^14 on: the sum is
  // rounded there. Whatever made the value, there is an integer minimum between it and the sum.
  const float sum = std::bit_cast<float>(clamped) + 0x1p14f;
  const std::uint32_t below_normal =
      std::bit_cast<std::uint32_t>(sum) - std::bit_cast<std::uint32_t>(0x1p14f);
  const std::uint32_t number = clamped < 0x3c800000u ? below_normal : normal;
  const std::uint32_t code = magnitude > 0x7f800000u ? 0x7fu : number;
  return static_cast<std::uint8_t>(((bits >> 24) & 0x80u) | code);
}

/// The value of E4M3FN bits; 0x7f and 0xff are NaN.
constexpr float e4m3_value(std::uint8_t code) {
  const std::uint32_t sign = (code & 0x80u) << 24;
  const std::uint32_t magnitude = code & 0x7fu;
  std::uint32_t bits = (magnitude << 20) + ((127u - 7u) << 23);
  if (magnitude < 8u) bits = std::bit_cast<std::uint32_t>(static_cast<float>(magnitude) * 0x1p-9f);
  if (magnitude == 0x7fu) bits = 0x7fc00000u;
  return std::bit_cast<float>(bits | sign);
}

/// 1 or 0, of numbers of 31 bits. Compilers make vectors of a difference sooner than of a comparison.
constexpr std::uint32_t is_above(std::uint32_t number, std::uint32_t limit) {
  return (limit - number) >> 31;
}

/// The four-bit code of `value` in E2M1 (0, 1/2, 1, 3/2, 2, 3, 4, 6; bit 3 is the sign), rounded to nearest
/// even as the devices' `cvt.rn.satfinite.e2m1x2` does: it saturates at ±6, zero keeps its sign, and so does
/// a negative that rounds to it. A NaN becomes 6 with its sign, for there is no code for it.
constexpr std::uint8_t e2m1_bits(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  constexpr std::uint32_t kLargest = 0x40c00000u;  // 6
  const std::uint32_t clamped = magnitude < kLargest ? magnitude : kLargest;
  constexpr std::uint32_t kBiases = (127u - 1u) << 23;
  const std::uint32_t normal = (clamped - kBiases + 0x1fffffu + ((clamped >> 22) & 1u)) >> 22;
  // Below 1 the halfway points are 1/4, which goes to 0, and 3/4, which goes to 1.
  const std::uint32_t below_one = is_above(clamped, 0x3e800000u) + is_above(clamped, 0x3f3fffffu);
  const std::uint32_t code = clamped < 0x3f800000u ? below_one : normal;
  return static_cast<std::uint8_t>(((bits >> 28) & 8u) | code);
}

/// As e2m1_bits(), but what is halfway goes to the lower magnitude (FlashInfer's MXFP4 quantiser in torch).
constexpr std::uint8_t e2m1_bits_ties_down(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  constexpr std::uint32_t kLargest = 0x40c00000u;  // 6
  const std::uint32_t clamped = magnitude < kLargest ? magnitude : kLargest;
  constexpr std::uint32_t kBiases = (127u - 1u) << 23;
  const std::uint32_t normal = (clamped - kBiases + 0x1fffffu) >> 22;
  const std::uint32_t below_one = is_above(clamped, 0x3e800000u) + is_above(clamped, 0x3f400000u);
  const std::uint32_t code = clamped < 0x3f800000u ? below_one : normal;
  return static_cast<std::uint8_t>(((bits >> 28) & 8u) | code);
}

/// The value of an E2M1 code; bits above the fourth are ignored.
constexpr float e2m1_value(std::uint8_t code) {
  const std::uint32_t magnitude = code & 7u;
  std::uint32_t bits = (magnitude << 22) + ((127u - 1u) << 23);
  if (magnitude < 2u) bits = magnitude == 0u ? 0u : 0x3f000000u;
  return std::bit_cast<float>(bits | ((code & 8u) << 28));
}

/// The value of an E8M0 byte: 2^(byte - 127), the least of which is a denormal float; 255 is NaN.
constexpr float e8m0_value(std::uint8_t byte) {
  std::uint32_t bits = static_cast<std::uint32_t>(byte) << 23;
  if (byte == 0) bits = 0x00400000u;
  if (byte == 255) bits = 0x7fc00000u;
  return std::bit_cast<float>(bits);
}

/// The E8M0 byte of the least power of two that is not below |value|, read off its exponent (DeepGEMM's
/// ceil_to_ue8m0 before it clamps): 0 for zero, 1 for every denormal, 255 for infinity and NaN.
constexpr std::uint8_t e8m0_ceil(float value) {
  const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(value) & 0x7fffffffu;
  const std::uint32_t byte = (magnitude >> 23) + ((magnitude & 0x7fffffu) != 0u ? 1u : 0u);
  return static_cast<std::uint8_t>(byte < 255u ? byte : 255u);
}

}  // namespace weightcast
