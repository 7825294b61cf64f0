#pragma once

#include <cstdint>

namespace weightcast {

/// Where the bytes of a matrix lie when a kernel does not want them row by row. A closed form, evaluated
/// where it is needed, so that no index table has to be kept or trusted: a row's number is read as four
/// binary digits, the lower three of `bits` bits, and each digit has a step of its own; the bytes of a row
/// lie together in units of 2^unit_bits, and each unit follows the one before after `unit_step`. The offset
/// of byte x of row r is row_offset(r) + byte_offset(x).
struct MatrixLayout {
  std::int64_t step[4] = {0, 0, 0, 0};  ///< bytes, lowest digit first  // NOLINT: device code indexes it
  std::int64_t unit_step = 0;           ///< bytes; 0: a row lies together as a whole
  std::uint8_t bits[3] = {0, 0, 0};     // NOLINT: as above
  std::uint8_t unit_bits = 0;

  /// True for one that was not set: rows lie a pitch apart, which is said elsewhere.
  constexpr bool plain() const { return step[3] == 0; }

  /// True when it is rows that lie together, `step[3]` apart.
  constexpr bool pitched() const { return !plain() && unit_step == 0 && (bits[0] | bits[1] | bits[2]) == 0; }

  /// True when it is the rows of one unit that lie one behind the other.
  constexpr bool transposed() const {
    return unit_step != 0 && step[3] == unit_bytes() && (bits[0] | bits[1] | bits[2]) == 0;
  }

  constexpr std::int64_t row_offset(std::int64_t row) const {
    std::int64_t offset = 0;
    for (int digit = 0; digit < 3; ++digit) {
      offset += (row & ((std::int64_t{1} << bits[digit]) - 1)) * step[digit];
      row >>= bits[digit];
    }
    return offset + row * step[3];
  }

  constexpr std::int64_t byte_offset(std::int64_t byte) const {
    if (unit_step == 0) return byte;
    return (byte >> unit_bits) * unit_step + (byte & (unit_bytes() - 1));
  }

  constexpr std::int64_t unit_bytes() const { return std::int64_t{1} << unit_bits; }

  /// Bytes from `byte` on, of at most `bytes`, that lie one behind the other.
  constexpr std::int64_t run(std::int64_t byte, std::int64_t bytes) const {
    if (unit_step == 0) return bytes;
    const std::int64_t left = unit_bytes() - (byte & (unit_bytes() - 1));
    return left < bytes ? left : bytes;
  }

  /// Bytes from the first one to the last of a matrix of `rows` rows of `bytes` bytes.
  constexpr std::int64_t extent(std::int64_t rows, std::int64_t bytes) const {
    std::int64_t last_row = 0;
    for (std::int64_t row = 0; row < rows; ++row) {
      last_row = row_offset(row) > last_row ? row_offset(row) : last_row;
    }
    // A row's last byte is in its last unit, or its last whole one lies beyond where that ends.
    const std::int64_t last = byte_offset(bytes - 1);
    const std::int64_t whole = bytes > unit_bytes() ? byte_offset((bytes >> unit_bits << unit_bits) - 1) : 0;
    return last_row + (last > whole ? last : whole) + 1;
  }

  friend constexpr bool operator==(const MatrixLayout& a, const MatrixLayout& b) = default;
};

/// Element (r, c) of the matrix c rows, which lie `pitch` bytes apart, below and r elements of `element`
/// bytes behind its first one.
constexpr MatrixLayout turned_layout(std::int64_t element, std::int64_t pitch) {
  MatrixLayout layout;
  layout.step[3] = element;
  while (layout.unit_bytes() < element) ++layout.unit_bits;
  layout.unit_step = pitch;
  return layout;
}

}  // namespace weightcast
