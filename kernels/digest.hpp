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
/// layout.
constexpr std::uint64_t digest_row_key(std::uint64_t tensor_key, std::int64_t row) {
  return mix64(tensor_key + static_cast<std::uint64_t>(row) * 0x9e3779b97f4a7c15ull) | 1u;
}
constexpr std::uint64_t digest_column_key(std::uint64_t tensor_key, std::int64_t column) {
  return mix64(~tensor_key + static_cast<std::uint64_t>(column) * 0xd1342543de82ef95ull) | 1u;
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
