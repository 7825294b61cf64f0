#include "model/layouts/scale_swizzle.hpp"

#include "core/units.hpp"

namespace weightcast {

namespace {

constexpr std::int64_t kTileCols = 4;
constexpr std::int64_t kTileBytes = kTileRows * kTileCols;

/// Of r: r%32, then (r%128)/32.
constexpr std::initializer_list<RowDigit> kOwnOrder{{5, kTileRow}, {2, kTileQuarter}};

/// `matrices` matrices, each of a multiple of `row_unit` rows. What `digits` leave of a row's number is the
/// number of its tile.
SlabLayout in_tiles(const PlaneMatrix& matrix, std::initializer_list<RowDigit> digits, std::int64_t row_unit,
                    std::int64_t matrices) {
  SlabLayout slab;
  slab.rows = round_up(matrix.rows, row_unit);
  slab.cols = round_up(matrix.cols, kTileCols);
  slab.shape = {matrices * slab.rows, slab.cols};
  slab.layout = in_units(row_digits(digits, slab.cols / kTileCols * kTileBytes), 2, kTileBytes);
  return slab;
}

}  // namespace

SlabLayout swizzled_interleaved(const PlaneMatrix& half, std::initializer_list<RowDigit> digits,
                                std::int64_t gate) {
  SlabLayout slab = in_tiles(half, digits, kTileRows / 2, 2);
  slab.gate = gate;
  return slab;
}

SlabLayout swizzled_in_order(const PlaneMatrix& matrix, std::initializer_list<RowDigit> digits) {
  return in_tiles(matrix, digits, kTileRows, 1);
}

SlabLayout swizzled(const PlaneMatrix& matrix) {
  return swizzled_in_order(matrix, kOwnOrder);
}

SlabLayout swizzled_up_first(const PlaneMatrix& half) {
  SlabLayout slab = in_tiles(half, kOwnOrder, kTileRows, 2);
  slab.gate = slab.rows * slab.cols;
  return slab;
}

}  // namespace weightcast
