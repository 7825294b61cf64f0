#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/float_bits.hpp"
#include "core/quantizer.hpp"

// encode() for several elements at once, in the instructions of the device. Elements come as they lie in
// memory, two bfloat16 in a word, the first one in its lower half.

namespace weightcast {

__device__ inline float lower_value(std::uint32_t pair) {
  return __uint_as_float(pair << 16);
}

__device__ inline float upper_value(std::uint32_t pair) {
  return __uint_as_float(pair & 0xffff0000u);
}

/// What is rounded to a code, as in encode(), but for the sign of a NaN: callers take each sign from the
/// value. That is the sign of everything else here, too, since factors are not negative. `*` and `/` are
/// IEEE's.
template <Quantizer Q>
__device__ float scaled(float value, float factor) {
  const float result = divides(Q.rule) ? value / factor : value * factor;
  return Q.rule == QuantRule::kMiles ? bf16_value(bf16_bits(result)) : result;
}

/// Four E4M3 codes, the first in the lowest byte.
template <Quantizer Q>
__device__ std::uint32_t e4m3_codes(std::uint32_t first, std::uint32_t second, float factor) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  // The instruction rounds finite numbers to nearest even, denormal codes too, and saturates at 448,
  // infinities too, as e4m3_bits() does; of a NaN it makes 0x7f, with whatever sign, which is replaced.
  std::uint16_t lower = 0;
  std::uint16_t upper = 0;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;"
      : "=h"(lower)
      : "f"(scaled<Q>(upper_value(first), factor)), "f"(scaled<Q>(lower_value(first), factor)));
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;"
      : "=h"(upper)
      : "f"(scaled<Q>(upper_value(second), factor)), "f"(scaled<Q>(lower_value(second), factor)));
  const std::uint32_t codes = static_cast<std::uint32_t>(upper) << 16 | lower;
  const std::uint32_t signs = __byte_perm(first, second, 0x7531);  // the upper byte of each value
  return (codes & 0x7f7f7f7fu) | (signs & 0x80808080u);
#else
  const auto code = [&](float value) { return std::uint32_t{encode(Q, value, {0, factor})}; };
  return code(lower_value(first)) | code(upper_value(first)) << 8 | code(lower_value(second)) << 16 |
         code(upper_value(second)) << 24;
#endif
}

/// A word whose lowest three bits are the magnitude of the E2M1 code of `value`; those above are anything.
/// The magnitude is added to a power of two that has the place of E2M1's last bit in its own last place, or
/// one place below it, so that the sum is rounded there, once: that is e2m1_bits(), or e2m1_bits_ties_down().
template <bool TiesDown>
__device__ std::uint32_t e2m1_magnitude(float value) {
  // Of a NaN and 6 the lesser is 6.
  const float magnitude = fminf(fabsf(value), kE2m1Largest);
  // 1, 2 or 4: codes below 1 are as far from each other as those from 1 on.
  const float power = __uint_as_float(__float_as_uint(fmaxf(magnitude, 1.0f)) & 0x7f800000u);
  if constexpr (TiesDown) {
    // Rounded up to quarters of the power, of which two are a step between codes: what is above the half
    // becomes more than one, what is the half or below does not. The next code of the power is 2 more, and so
    // is twice its exponent, 127 + 21 of which are a multiple of 8.
    const std::uint32_t sum = __float_as_uint(__fmaf_ru(power, 0x1p21f, magnitude));
    return (sum >> 1) + (sum >> 22);
  } else {
    // In halves of the power. 6 more of them, an even number, make twice 127 + 22 a multiple of 8.
    const std::uint32_t sum = __float_as_uint(__fmaf_rn(power, 0x1p22f + 3.0f, magnitude));
    return sum + (sum >> 22);
  }
}

/// Eight E2M1 codes, the first in the lowest four bits.
template <Quantizer Q>
__device__ std::uint32_t e2m1_codes(const uint4& values, float factor) {
  constexpr bool kTiesDown = Q.rule == QuantRule::kRoundUpTiesDown;
  const auto lower = [&](std::uint32_t pair) {
    return e2m1_magnitude<kTiesDown>(scaled<Q>(lower_value(pair), factor));
  };
  const auto upper = [&](std::uint32_t pair) {
    return e2m1_magnitude<kTiesDown>(scaled<Q>(upper_value(pair), factor));
  };
  // The lowest byte of each of four words.
  const auto bytes = [](std::uint32_t a, std::uint32_t b, std::uint32_t c, std::uint32_t d) {
    return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
  };
  const std::uint32_t even = bytes(lower(values.x), lower(values.y), lower(values.z), lower(values.w));
  const std::uint32_t odd = bytes(upper(values.x), upper(values.y), upper(values.z), upper(values.w));
  // The upper bytes of values 0 2 1 3 and 4 6 5 7, then of the even and of the odd ones.
  const std::uint32_t first = __byte_perm(values.x, values.y, 0x7351);
  const std::uint32_t second = __byte_perm(values.z, values.w, 0x7351);
  const std::uint32_t even_signs = __byte_perm(first, second, 0x5410);
  const std::uint32_t odd_signs = __byte_perm(first, second, 0x7632);
  return (even & 0x07070707u) | (even_signs & 0x80808080u) >> 4 | (odd & 0x07070707u) << 4 |
         (odd_signs & 0x80808080u);
}

/// The eight bytes of codes of 8 or 16 elements.
template <Quantizer Q, int Vectors>
__device__ uint2 encode_unit(const uint4 (&values)[Vectors], float factor) {
  if constexpr (Vectors == 2) {
    return {e2m1_codes<Q>(values[0], factor), e2m1_codes<Q>(values[1], factor)};
  } else {
    return {e4m3_codes<Q>(values[0].x, values[0].y, factor), e4m3_codes<Q>(values[0].z, values[0].w, factor)};
  }
}

/// The larger magnitudes of two pairs; a NaN counts as none, and there is none in `largest`: the bits are
/// compared as numbers, which for magnitudes is the order of their bits.
__device__ inline std::uint32_t larger_pair(std::uint32_t largest, std::uint32_t pair) {
  std::uint32_t result = 0;
  // Of a number and a NaN it is the number, and denormals are not flushed.
  asm("max.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(largest), "r"(pair & 0x7fff7fffu));
  return result;
}

/// The larger of the two magnitudes of a pair, as bfloat16 bits.
__device__ inline std::uint32_t larger_of(std::uint32_t pair) {
  return max(pair & 0xffffu, pair >> 16);
}

template <int Vectors>
__device__ std::uint32_t larger_pair(std::uint32_t largest, const uint4 (&values)[Vectors]) {
#pragma unroll
  for (const uint4& vector : values) {
    largest = larger_pair(largest, vector.x);
    largest = larger_pair(largest, vector.y);
    largest = larger_pair(largest, vector.z);
    largest = larger_pair(largest, vector.w);
  }
  return largest;
}

}  // namespace weightcast
