#pragma once

#include <cstdint>

#include "core/matrix_layout.hpp"
#include "core/quantizer.hpp"
#include "core/shape.hpp"

namespace weightcast {

/// Whose memory a matrix lies in.
enum class Space : std::uint8_t {
  kNowhere,    ///< it is not written
  kSource,     ///< numbered buffers of a trainer
  kStaging,    ///< a bucket
  kParameter,  ///< numbered parameters
};

/// Where a matrix lies: rows `pitch` bytes apart from `offset` on or, with a layout, the rows from `row` on,
/// from byte `byte` on, of the matrix that the layout places from `offset` on.
struct MatrixPlace {
  Space space = Space::kNowhere;
  std::uint32_t buffer = 0;  ///< which of the numbered ones
  std::int64_t offset = 0;
  std::int64_t pitch = 0;
  MatrixLayout layout = {};
  std::int64_t row = 0;
  std::int64_t byte = 0;

  /// Bytes from the start of the buffer to byte `b` of row `r`.
  constexpr std::int64_t at(std::int64_t r, std::int64_t b) const {
    return offset +
           (layout.plain() ? r * pitch + b : layout.row_offset(row + r) + layout.byte_offset(byte + b));
  }
};

/// Quantises one box of a tensor: a flat, trivially copyable descriptor, as a move is. Reads `rows` × `cols`
/// bfloat16 values and writes codes, and the scales of blocks; begins where a block begins.
struct QuantMove {
  static constexpr std::uint32_t kNoScope = ~0u;

  Quantizer quantizer;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  MatrixPlace values;  ///< never with a layout
  MatrixPlace codes;
  MatrixPlace scales;
  /// Values for which one element of the scales stands: those of a block, or of one row of it where the scale
  /// is repeated for every row.
  std::int64_t scale_rows = 1;
  std::int64_t scale_cols = 1;
  std::int64_t scale_bytes = 0;  ///< of an element; one byte of fp8-block is the exponent
  /// Where a scale belongs to a whole row: columns before these values and behind them.
  std::int64_t cols_before = 0;
  std::int64_t cols_behind = 0;
  std::uint32_t scope = kNoScope;  ///< which global scale

  // For digests: coordinates and keys of both planes, and the plan's segment.
  Box codes_box;
  Box scales_box;
  std::uint64_t codes_key = 0;
  std::uint64_t scales_key = 0;
  std::uint32_t segment = 0;
};

/// Of the codes and of the scales that a QuantMove makes.
struct QuantDigests {
  std::uint64_t codes = 0;
  std::uint64_t scales = 0;
};

}  // namespace weightcast
