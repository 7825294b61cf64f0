#pragma once

#include <cstdint>

namespace weightcast {

// A matrix that is kept turned: the columns of the matrix are rows there, those of one kind behind those of
// another where they are of `kinds` kinds in turn (gate and up). Column c is of kind c mod kinds.

/// The row that column `col` of `cols` is.
constexpr std::int64_t turned_row(std::int64_t col, std::int64_t cols, std::int64_t kinds) {
  return col % kinds * (cols / kinds) + col / kinds;
}

/// The column that row `row` is.
constexpr std::int64_t turned_column(std::int64_t row, std::int64_t cols, std::int64_t kinds) {
  return row % (cols / kinds) * kinds + row / (cols / kinds);
}

/// The first number, of columns of kind `kind`, of one that is `col` or behind it.
constexpr std::int64_t first_of_kind(std::int64_t col, std::int64_t kind, std::int64_t kinds) {
  return (col - kind + kinds - 1) / kinds;
}

}  // namespace weightcast
