#include "kernels/host/one_more_row.hpp"

#include <cstring>

#include "core/one_more.hpp"

namespace weightcast {

void one_more_row(const std::byte* from, std::int64_t element_bytes, std::byte* to, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (element_bytes == 2) {
      std::uint16_t bits = 0;
      std::memcpy(&bits, from + i * 2, 2);
      bits = one_more_bf16(bits);
      std::memcpy(to + i * 2, &bits, 2);
    } else {
      float value = 0;
      std::memcpy(&value, from + i * 4, 4);
      const std::uint32_t word = one_more_bits(value);
      std::memcpy(to + i * 4, &word, 4);
    }
  }
}

}  // namespace weightcast
