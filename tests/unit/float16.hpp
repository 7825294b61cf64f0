#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

namespace weightcast {

/// The value of IEEE half-precision bits, as the standard's table says it.
inline double f16_value(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int fraction = bits & 0x3ff;
  double magnitude = std::ldexp(1024 + fraction, exponent - 25);
  if (exponent == 0) magnitude = std::ldexp(fraction, -24);
  if (exponent == 31) {
    magnitude =
        fraction == 0 ? std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  }
  return std::copysign(magnitude, bits & 0x8000 ? -1.0 : 1.0);
}

}  // namespace weightcast
