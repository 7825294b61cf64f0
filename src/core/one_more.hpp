#pragma once

#include <bit>
#include <cstdint>
#include <optional>

#include "core/float_bits.hpp"

namespace weightcast {

// Norms that a trainer keeps as what they differ from 1 by: a weight w of the model is w - 1 there. What goes
// out is 1 more than what is held, in the same type, rounded once to nearest even. No processor has other
// bits: what is no number stays the NaN that it is, as a quiet one, and is not added to.

/// The bits of 1 + the float32 `value`.
constexpr std::uint32_t one_more_bits(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return bits | 0x400000u;
  return std::bit_cast<std::uint32_t>(value + 1.0f);
}

/// The same of bfloat16 bits. The sum is exact in float32 wherever the lesser of 1 and the value counts, so
/// it is rounded once.
constexpr std::uint16_t one_more_bf16(std::uint16_t bits) {
  return bf16_bits(std::bit_cast<float>(one_more_bits(bf16_value(bits))));
}

/// What is held as float32 so that 1 more than it is `value`, bit for bit; nothing where no float32 is.
inline std::optional<float> one_less(float value) {
  const float held = value - 1.0f;
  const std::uint32_t back = one_more_bits(held);
  return back == std::bit_cast<std::uint32_t>(value) ? std::optional(held) : std::nullopt;
}

}  // namespace weightcast
