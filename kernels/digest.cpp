#include "kernels/digest.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>

namespace weightcast {

namespace {

// Column keys are computed once for this many columns and reused over all rows of a box. As many as the
// first-level cache holds: shorter runs jump from row to row more often than memory likes.
constexpr std::int64_t kColumnsAtOnce = 4096;

template <typename Element>
__attribute__((always_inline)) inline std::uint64_t dot_body(const std::byte* data, const std::uint64_t* keys,
                                                             std::int64_t count) {
  std::uint64_t sum = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    Element element;
    std::memcpy(&element, data + i * static_cast<std::int64_t>(sizeof element), sizeof element);
    sum += keys[i] * element;
  }
  return sum;
}

template <typename Element>
std::uint64_t dot(const std::byte* data, const std::uint64_t* keys, std::int64_t count) {
  return dot_body<Element>(data, keys, count);
}

#ifdef __x86_64__
// 64-bit lane multiplication exists from AVX-512DQ on; the portable loop takes four times as long.
template <typename Element>
__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl"))) std::uint64_t dot_avx512(
    const std::byte* data, const std::uint64_t* keys, std::int64_t count) {
  return dot_body<Element>(data, keys, count);
}

template <typename Element>
__attribute__((target("avx2"))) std::uint64_t dot_avx2(const std::byte* data, const std::uint64_t* keys,
                                                       std::int64_t count) {
  return dot_body<Element>(data, keys, count);
}
#endif

using Dot = std::uint64_t (*)(const std::byte*, const std::uint64_t*, std::int64_t);

template <typename Element>
Dot best_dot() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    return &dot_avx512<Element>;
  }
  if (__builtin_cpu_supports("avx2")) return &dot_avx2<Element>;
#endif
  return &dot<Element>;
}

Dot dot_for(std::int64_t element_bytes) {
  static const std::array<Dot, 4> dots{best_dot<std::uint8_t>(), best_dot<std::uint16_t>(),
                                       best_dot<std::uint32_t>(), best_dot<std::uint64_t>()};
  switch (element_bytes) {
    case 1:
      return dots[0];
    case 2:
      return dots[1];
    case 4:
      return dots[2];
    case 8:
      return dots[3];
    default:
      throw std::logic_error("digest of elements that are not 1, 2, 4 or 8 bytes");
  }
}

}  // namespace

std::uint64_t digest_box(const std::byte* data, std::int64_t pitch, const Box& box,
                         std::int64_t element_bytes, std::uint64_t tensor_key) {
  const Dot row_dot = dot_for(element_bytes);
  std::array<std::uint64_t, kColumnsAtOnce> keys;  // NOLINT: filled below as far as it is read
  std::uint64_t sum = 0;
  for (std::int64_t col = 0; col < box.cols; col += kColumnsAtOnce) {
    const std::int64_t count = std::min(kColumnsAtOnce, box.cols - col);
    for (std::int64_t i = 0; i < count; ++i) {
      keys[static_cast<std::size_t>(i)] = digest_column_key(tensor_key, box.col + col + i);
    }
    const std::byte* column = data + col * element_bytes;
    for (std::int64_t row = 0; row < box.rows; ++row) {
      sum += digest_row_key(tensor_key, box.row + row) * row_dot(column + row * pitch, keys.data(), count);
    }
  }
  return sum;
}

}  // namespace weightcast
