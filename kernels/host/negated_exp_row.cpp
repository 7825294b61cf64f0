#include "kernels/host/negated_exp_row.hpp"

#include <cstring>

#include "core/float_bits.hpp"
#include "core/negated_exp.hpp"

namespace weightcast {

void negated_exp_row(const std::byte* from, std::int64_t element_bytes, std::byte* to, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    float value = 0;
    if (element_bytes == 2) {
      std::uint16_t bits = 0;
      std::memcpy(&bits, from + i * 2, 2);
      value = bf16_value(bits);
    } else {
      std::memcpy(&value, from + i * 4, 4);
    }
    const std::uint32_t word = negated_exp_bits(value);
    std::memcpy(to + i * 4, &word, 4);
  }
}

}  // namespace weightcast
