#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace weightcast {

/// Σ key · element mod 2^64 over a few elements. Keys are kept in halves, because an element of at most 32
/// bits then costs one wide and one narrow multiplication instead of a whole 64-bit product.
template <typename Element, int Count>
class Dot {
 public:
  __device__ void set_key(int i, std::uint64_t key) {
    low_[i] = static_cast<std::uint32_t>(key);
    high_[i] = static_cast<std::uint32_t>(key >> 32);
  }
  __device__ std::uint64_t of(const Element (&elements)[Count]) const {
    std::uint64_t low = 0;
    std::uint32_t high = 0;
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      if constexpr (sizeof(Element) == 8) {
        low += (std::uint64_t{high_[i]} << 32 | low_[i]) * elements[i];
      } else {
        const std::uint32_t element = elements[i];
        low += std::uint64_t{low_[i]} * element;
        high += high_[i] * element;
      }
    }
    return low + (std::uint64_t{high} << 32);
  }

 private:
  std::uint32_t low_[Count];
  std::uint32_t high_[Count];
};

}  // namespace weightcast
