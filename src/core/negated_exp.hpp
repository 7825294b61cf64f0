#pragma once

#include <array>
#include <bit>
#include <cstdint>

namespace weightcast {

/// The upper half of the 128 bits of a product.
constexpr std::uint64_t upper_product(std::uint64_t a, std::uint64_t b) {
  constexpr std::uint64_t kLow = 0xffffffffu;
  const std::uint64_t low = (a & kLow) * (b & kLow);
  const std::uint64_t middle = (a >> 32) * (b & kLow) + (low >> 32);
  const std::uint64_t other = (a & kLow) * (b >> 32) + (middle & kLow);
  return (a >> 32) * (b >> 32) + (middle >> 32) + (other >> 32);
}

/// The bits of −e^`value`, rounded once to float32: what Mamba-2 layers of engines keep of `A_log` (vLLM's
/// and SGLang's loaders: `-exp(A_log.float())`). Integers alone compute it, so that no compiler and no
/// processor has another result. Less than 2^-57 of it is neglected before it is rounded, which is less than
/// what a double neglects. Below the least float32 it is −0, above the largest −infinity; of what is no
/// number it is a quiet NaN.
constexpr std::uint32_t negated_exp_bits(float value) {
  constexpr std::uint32_t kSign = 0x80000000u;
  constexpr std::uint32_t kInfinity = 0x7f800000u;
  constexpr std::uint32_t kOne = 0x3f800000u;
  constexpr std::uint64_t kLog2OfE = 0xb8aa3b295c17f0bcull;  // in units of 2^-63
  constexpr std::uint64_t kLogE2 = 0xb17217f7d1cf79acull;    // the natural logarithm of 2, units of 2^-64
  constexpr std::uint64_t kUnit = std::uint64_t{1} << 63;    // 1 in units of 2^-63
  constexpr std::uint64_t kTerms = 20;                       // ln(2)^20 / 20! is below 2^-71
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & ~kSign;
  const bool negative = (bits & kSign) != 0;
  if (magnitude > kInfinity) return kInfinity | 0x400000u;
  // From 104 on the result is beyond all float32; below 2^-26 it is 1.
  if (magnitude >= std::bit_cast<std::uint32_t>(104.0f)) return kSign | (negative ? 0 : kInfinity);
  if (magnitude < std::bit_cast<std::uint32_t>(0x1p-26f)) return kSign | kOne;

  // |value| in units of 2^-57; times log2(e), in units of 2^-56 and of 2^-120.
  const std::uint64_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
  const std::uint64_t exact = mantissa << ((magnitude >> 23) - 93);
  const std::uint64_t upper = upper_product(exact, kLog2OfE);
  // e^|value| is 2^(whole + fraction · 2^-64).
  auto whole = static_cast<std::int32_t>(upper >> 56);
  std::uint64_t fraction = (upper << 8) | ((exact * kLog2OfE) >> 56);
  if (negative) {
    whole = -whole - (fraction == 0 ? 0 : 1);
    fraction = ~fraction + 1;
  }

  // The power series of e^y, 0 <= y < ln(2), from its last term on: at least 1, less than 2.
  const std::uint64_t y = upper_product(fraction, kLogE2);
  std::uint64_t sum = kUnit;
  for (std::uint64_t term = kTerms; term > 0; --term) sum = kUnit + upper_product(y, sum) / term;

  if (whole > 127) return kSign | kInfinity;
  if (whole < -150) return kSign;
  // Below 2^-126 a float32 counts units of 2^-149.
  const std::int32_t drop = whole < -126 ? 40 - 126 - whole : 40;
  if (drop == 64) return kSign | (sum > kUnit ? 1u : 0u);
  const auto kept = static_cast<std::uint32_t>(sum >> drop);
  const std::uint64_t rest = sum & ((std::uint64_t{1} << drop) - 1);
  const std::uint64_t half = std::uint64_t{1} << (drop - 1);
  const std::uint32_t up = rest > half || (rest == half && kept % 2 == 1) ? 1 : 0;
  // A normal number's first bit is not stored: it adds one to the exponent, as does a carry.
  const auto exponent = whole < -126 ? 0u : static_cast<std::uint32_t>(whole + 126) << 23;
  return kSign | (exponent + kept + up);
}

/// The value of these bits.
constexpr float negated_exp(float value) {
  return std::bit_cast<float>(negated_exp_bits(value));
}

}  // namespace weightcast
