#include "model/layouts/packed_scales.hpp"

#include "core/units.hpp"

namespace weightcast {

SlabLayout packed_scales(const PlaneMatrix& matrix, std::int64_t words,
                         std::initializer_list<RowDigit> digits, std::int64_t rest) {
  SlabLayout slab;
  slab.rows = matrix.rows;
  slab.cols = round_up(matrix.cols, kScaleWord);
  slab.shape = {slab.cols / kScaleWord, words, kScaleWord};
  slab.layout = in_units(row_digits(digits, rest), 2, words * kScaleWord);
  return slab;
}

}  // namespace weightcast
