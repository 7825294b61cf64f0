#pragma once

#include <algorithm>
#include <cstdint>

#include "core/shape.hpp"
#include "core/units.hpp"
#include "kernels/quant_move.hpp"
#include "model/parameter.hpp"

namespace weightcast {

/// How boxes of one tensor travel: its values, or the codes of a quantised tensor and behind them the scales
/// of its blocks, so that a scale is never apart from what it scales.
struct WireForm {
  static constexpr std::uint32_t kNoScope = QuantMove::kNoScope;
  /// Scales begin at multiples of this in a segment.
  static constexpr std::int64_t kScalesAlignment = 16;

  std::int64_t element_bytes = 0;  ///< of a value
  bool quantized = false;          ///< engines keep codes of it
  bool codes_travel = false;       ///< the sender quantises, not the receiver
  /// A box begins at multiples of these and ends there or with the tensor.
  std::int64_t unit_rows = 1;
  std::int64_t unit_cols = 1;
  bool whole_rows = false;         ///< a scale follows from all of a row
  std::uint32_t scope = kNoScope;  ///< index of the scale that it shares with others (Plan::scopes)
  PlaneForm codes = {};
  PlaneForm scales = {};
  std::int64_t scale_bytes = 0;  ///< of one element of the scales; 0: there are none

  std::int64_t codes_bytes(const Box& box) const { return codes.of(box).area(); }
  std::int64_t scales_offset(const Box& box) const { return round_up(codes_bytes(box), kScalesAlignment); }

  /// Bytes of a box in a bucket.
  std::int64_t bytes(const Box& box) const {
    if (!codes_travel) return box.area() * element_bytes;
    if (scale_bytes == 0) return codes_bytes(box);
    return scales_offset(box) + scales.of(box).area() * scale_bytes;
  }

  /// Most rows of `box`, whole units from its first on, that take at most `room` bytes.
  std::int64_t rows_within(const Box& box, std::int64_t room) const {
    if (bytes(box) <= room) return box.rows;
    const Box unit{box.row, unit_rows, box.col, box.cols};
    // Without the gap before the scales, which comes once.
    const std::int64_t unit_bytes =
        codes_travel ? codes_bytes(unit) + scales.of(unit).area() * scale_bytes : bytes(unit);
    Box top = box;
    top.rows = std::min(room / unit_bytes, (box.rows - 1) / unit_rows) * unit_rows;
    while (bytes(top) > room) top.rows -= unit_rows;
    return top.rows;
  }
};

}  // namespace weightcast
