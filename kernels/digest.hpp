#pragma once

#include <cstddef>
#include <cstdint>

#include "core/float_bits.hpp"
#include "core/matrix_layout.hpp"
#include "core/shape.hpp"

namespace weightcast {

/// The keys of the digest `Σ row_key(r) · column_key(c) · bits(element) mod 2^64`, r and c canonical
/// coordinates in the whole tensor, `tensor_key` the XXH3-64 hash of the tensor's name. Both are odd, so no
/// single changed element can vanish; the sum commutes, so boxes of a tensor may be added up in any order and
/// layout. Elements of one byte share a column's key by fours, each shifted to its place in a little-endian
/// word: a row of them has the digest of its words, at a quarter of the multiplications.
inline constexpr std::uint64_t kDigestRowFactor = 0x9e3779b97f4a7c15ull;
inline constexpr std::uint64_t kDigestColumnFactor = 0xd1342543de82ef95ull;
constexpr std::uint64_t digest_key(std::uint64_t base, std::uint64_t factor, std::int64_t coordinate) {
  return mix64(base + static_cast<std::uint64_t>(coordinate) * factor) | 1u;
}
constexpr std::uint64_t digest_row_key(std::uint64_t tensor_key, std::int64_t row) {
  return digest_key(tensor_key, kDigestRowFactor, row);
}
constexpr std::uint64_t digest_column_key(std::uint64_t tensor_key, std::int64_t column,
                                          std::int64_t element_bytes) {
  if (element_bytes != 1) return digest_key(~tensor_key, kDigestColumnFactor, column);
  return digest_key(~tensor_key, kDigestColumnFactor, column / 4) << (8 * (column % 4));
}

/// The digest of elements that were widened from bfloat16 to float32, from that of what they were: their bits
/// are the upper half of each word, and columns of two and of four bytes have the same keys. A lower half
/// that is not zero makes another digest.
constexpr std::uint64_t widened_digest(std::uint64_t of_bf16) {
  return of_bf16 << 16;
}

/// The digest of −e^x in float32 (core/negated_exp.hpp) of a box's elements x, which are float32 or, of two
/// bytes, bfloat16: that of what an engine makes of them, computed where they come from.
std::uint64_t negated_exp_digest(const std::byte* data, std::int64_t pitch, const Box& box,
                                 std::int64_t element_bytes, std::uint64_t tensor_key);

/// The digest of 1 more than each element (core/one_more.hpp), bfloat16 or float32 by their size: that of
/// what is sent of them.
std::uint64_t one_more_digest(const std::byte* data, std::int64_t pitch, const Box& box,
                              std::int64_t element_bytes, std::uint64_t tensor_key);

/// Whether a box of elements of one byte, of which a layout places byte `byte` first, is one of whole words.
constexpr bool consists_of_words(const Box& box, std::int64_t element_bytes, const MatrixLayout& layout,
                                 std::int64_t byte) {
  return element_bytes == 1 && box.col % 4 == 0 && box.cols % 4 == 0 &&
         (layout.unit_step == 0 || (layout.unit_bytes() >= 4 && byte % 4 == 0));
}

/// Such a box, in words.
constexpr Box in_words(const Box& box) {
  return {box.row, box.rows, box.col / 4, box.cols / 4};
}

/// The digest of `box` of a tensor whose elements of `element_bytes` (1, 2, 4 or 8) lie at `data`, rows
/// `pitch` bytes apart.
std::uint64_t digest_box(const std::byte* data, std::int64_t pitch, const Box& box,
                         std::int64_t element_bytes, std::uint64_t tensor_key);

/// The digest of a box whose elements `layout` has placed from `data` on; it begins at row `row`, byte `byte`
/// of the layout's matrix.
std::uint64_t digest_box(const std::byte* data, const MatrixLayout& layout, std::int64_t row,
                         std::int64_t byte, const Box& box, std::int64_t element_bytes,
                         std::uint64_t tensor_key);

}  // namespace weightcast
