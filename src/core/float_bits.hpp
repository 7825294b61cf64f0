#pragma once

#include <bit>
#include <cstdint>

namespace weightcast {

/// The bits of `value` as bfloat16, rounded to nearest even; a NaN stays a (quiet) NaN.
constexpr std::uint16_t bf16_bits(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  const std::uint32_t round = 0x7fffu + ((bits >> 16) & 1u);
  return static_cast<std::uint16_t>((bits + round) >> 16);
}

/// The value of bfloat16 bits.
constexpr float bf16_value(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

/// The bits of `value` as IEEE half precision, rounded to nearest even; a NaN stays a (quiet) NaN. Not every
/// compiler for C++ has a type that does this.
constexpr std::uint16_t f16_bits(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  const auto with_sign = [&](std::uint32_t half) { return static_cast<std::uint16_t>(sign | half); };
  if (magnitude > 0x7f800000u) return with_sign(0x7e00u | ((magnitude >> 13) & 0x3ffu));
  // From halfway between the largest half and 2^16 on.
  if (magnitude >= 0x477ff000u) return with_sign(0x7c00u);
  if (magnitude < 0x38800000u) {
    // Below 2^-14 a half counts units of 2^-24, which is the last place of a float from 1/2 on: the sum is
    // rounded there.
    const float sum = std::bit_cast<float>(magnitude) + 0.5f;
    return with_sign(std::bit_cast<std::uint32_t>(sum) - std::bit_cast<std::uint32_t>(0.5f));
  }
  const std::uint32_t round = 0xfffu + ((magnitude >> 13) & 1u);
  constexpr std::uint32_t kBiases = (127u - 15u) << 23;
  return with_sign((magnitude - kBiases + round) >> 13);
}

/// The finaliser of splitmix64: a bijection of 64-bit words that scatters every input bit.
constexpr std::uint64_t mix64(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

}  // namespace weightcast
