#include "model/layouts/row_shuffle.hpp"

#include "core/units.hpp"
#include "model/layouts/row_digits.hpp"

namespace weightcast {

MatrixLayout shuffled_rows(std::int64_t pitch) {
  return row_digits({{2, 8 * pitch}, {3, pitch}}, 32 * pitch);
}

MatrixLayout shuffled_gated_rows(std::int64_t pitch) {
  return row_digits({{1, 16 * pitch}, {3, pitch}}, 32 * pitch);
}

MatrixLayout shuffled_rows_of_16(std::int64_t pitch) {
  return row_digits({{1, 8 * pitch}, {3, pitch}}, 16 * pitch);
}

SlabLayout k_blocks(const MatrixLayout& rows_of_block, const PlaneMatrix& matrix, std::int64_t rows) {
  const std::int64_t block = kKBlockBytes / matrix.element;
  SlabLayout slab;
  slab.rows = matrix.rows;
  slab.cols = round_up(matrix.cols, block);
  slab.shape = {slab.cols / block, rows, block};
  slab.layout = in_units(rows_of_block, 7, rows * kKBlockBytes);
  return slab;
}

}  // namespace weightcast
