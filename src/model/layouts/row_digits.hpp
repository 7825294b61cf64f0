#pragma once

#include <cstdint>
#include <initializer_list>

#include "core/matrix_layout.hpp"

namespace weightcast {

/// Some bits of a row's number, read as a digit; the row lies `step` bytes further for each unit of it.
struct RowDigit {
  std::uint8_t bits = 0;
  std::int64_t step = 0;
};

/// The layout that reads a row's number as `digits` (at most three, lowest first), with `rest` bytes for what
/// is left of it above them. The bytes of a row lie one behind the other.
constexpr MatrixLayout row_digits(std::initializer_list<RowDigit> digits, std::int64_t rest) {
  MatrixLayout layout;
  int number = 0;
  for (const RowDigit& digit : digits) {
    layout.bits[number] = digit.bits;
    layout.step[number] = digit.step;
    ++number;
  }
  layout.step[3] = rest;
  return layout;
}

/// `layout` with its rows cut into units of 2^`bits` bytes, `step` bytes apart.
constexpr MatrixLayout in_units(MatrixLayout layout, std::uint8_t bits, std::int64_t step) {
  layout.unit_bits = bits;
  layout.unit_step = step;
  return layout;
}

}  // namespace weightcast
