#include "kernels/digest.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "kernels/host/negated_exp_row.hpp"
#include "kernels/host/one_more_row.hpp"

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

/// Σ outer_key(o) · Σ inner_key(i) · element(o, i): `dot` gives the inner sum of some of the elements of
/// outer number `outer` (from 0) whose keys are given.
template <typename OuterKey, typename InnerKey, typename DotOf>
std::uint64_t digest(std::int64_t first_outer, std::int64_t outers, std::int64_t first_inner,
                     std::int64_t inners, OuterKey outer_key, InnerKey inner_key, DotOf dot) {
  std::array<std::uint64_t, kColumnsAtOnce> keys;  // NOLINT: filled below as far as it is read
  std::uint64_t sum = 0;
  for (std::int64_t inner = 0; inner < inners; inner += kColumnsAtOnce) {
    const std::int64_t count = std::min(kColumnsAtOnce, inners - inner);
    for (std::int64_t i = 0; i < count; ++i) {
      keys[static_cast<std::size_t>(i)] = inner_key(first_inner + inner + i);
    }
    for (std::int64_t outer = 0; outer < outers; ++outer) {
      sum += outer_key(first_outer + outer) * dot(outer, inner, keys.data(), count);
    }
  }
  return sum;
}

}  // namespace

std::uint64_t digest_box(const std::byte* data, std::int64_t pitch, const Box& box,
                         std::int64_t element_bytes, std::uint64_t tensor_key) {
  if (consists_of_words(box, element_bytes, {}, 0))
    return digest_box(data, pitch, in_words(box), 4, tensor_key);
  const Dot row_dot = dot_for(element_bytes);
  return digest(
      box.row, box.rows, box.col, box.cols, [&](auto row) { return digest_row_key(tensor_key, row); },
      [&](auto column) { return digest_column_key(tensor_key, column, element_bytes); },
      [&](std::int64_t row, std::int64_t col, const std::uint64_t* keys, std::int64_t count) {
        return row_dot(data + row * pitch + col * element_bytes, keys, count);
      });
}

std::uint64_t digest_box(const std::byte* data, const MatrixLayout& layout, std::int64_t row,
                         std::int64_t byte, const Box& box, std::int64_t element_bytes,
                         std::uint64_t tensor_key) {
  if (consists_of_words(box, element_bytes, layout, byte)) {
    return digest_box(data, layout, row, byte, in_words(box), 4, tensor_key);
  }
  const Dot run_dot = dot_for(element_bytes);
  if (layout.transposed() && layout.unit_bytes() == element_bytes) {
    // Transposed: what lies together are the rows' elements of one column.
    const std::byte* first = data + layout.row_offset(row) + layout.byte_offset(byte);
    return digest(
        box.col, box.cols, box.row, box.rows,
        [&](auto column) { return digest_column_key(tensor_key, column, element_bytes); },
        [&](auto r) { return digest_row_key(tensor_key, r); },
        [&](std::int64_t col, std::int64_t r, const std::uint64_t* keys, std::int64_t count) {
          return run_dot(first + col * layout.unit_step + r * element_bytes, keys, count);
        });
  }
  return digest(
      box.row, box.rows, box.col, box.cols, [&](auto r) { return digest_row_key(tensor_key, r); },
      [&](auto column) { return digest_column_key(tensor_key, column, element_bytes); },
      [&](std::int64_t r, std::int64_t col, const std::uint64_t* keys, std::int64_t count) {
        const std::byte* const start = data + layout.row_offset(row + r);
        std::uint64_t sum = 0;
        for (std::int64_t done = 0; done < count;) {
          const std::int64_t at = byte + (col + done) * element_bytes;
          const std::int64_t run = layout.run(at, (count - done) * element_bytes) / element_bytes;
          sum += run_dot(start + layout.byte_offset(at), keys + done, run);
          done += run;
        }
        return sum;
      });
}

std::uint64_t negated_exp_digest(const std::byte* data, std::int64_t pitch, const Box& box,
                                 std::int64_t element_bytes, std::uint64_t tensor_key) {
  std::vector<std::byte> row_of(static_cast<std::size_t>(box.cols * 4));
  std::uint64_t sum = 0;
  for (std::int64_t row = 0; row < box.rows; ++row) {
    negated_exp_row(data + row * pitch, element_bytes, row_of.data(), box.cols);
    sum += digest_box(row_of.data(), 0, {box.row + row, 1, box.col, box.cols}, 4, tensor_key);
  }
  return sum;
}

std::uint64_t one_more_digest(const std::byte* data, std::int64_t pitch, const Box& box,
                              std::int64_t element_bytes, std::uint64_t tensor_key) {
  std::vector<std::byte> row_of(static_cast<std::size_t>(box.cols * element_bytes));
  std::uint64_t sum = 0;
  for (std::int64_t row = 0; row < box.rows; ++row) {
    one_more_row(data + row * pitch, element_bytes, row_of.data(), box.cols);
    sum += digest_box(row_of.data(), 0, {box.row + row, 1, box.col, box.cols}, element_bytes, tensor_key);
  }
  return sum;
}

}  // namespace weightcast
