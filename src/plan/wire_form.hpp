#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <variant>

#include "core/overloaded.hpp"
#include "core/shape.hpp"
#include "core/units.hpp"
#include "kernels/quant_move.hpp"
#include "model/parameter.hpp"

namespace weightcast {

/// Values as the trainer holds them, row-major without gaps. An engine that keeps codes makes them on
/// arrival.
struct ValuesForm {};

/// The codes of a quantised tensor and behind them the scales of their blocks, so that a scale is never apart
/// from what it scales. The sender makes them.
struct CodesForm {
  /// Scales begin at multiples of this in a segment.
  static constexpr std::int64_t kScalesAlignment = 16;

  PlaneForm codes = {};
  PlaneForm scales = {};
  std::int64_t scale_bytes = 0;  ///< of one element of the scales; 0: there are none

  /// Bytes of the codes, and of the scales, of a box of values.
  std::int64_t codes_bytes(const Box& box) const { return codes.of(box).area(); }
  std::int64_t scales_bytes(const Box& box) const { return scales.of(box).area() * scale_bytes; }
  std::int64_t scales_offset(const Box& box) const { return round_up(codes_bytes(box), kScalesAlignment); }

  /// Bytes of a box in a bucket.
  std::int64_t bytes(const Box& box) const {
    return scale_bytes == 0 ? codes_bytes(box) : scales_offset(box) + scales_bytes(box);
  }
};

/// How boxes of one tensor travel.
struct WireForm {
  static constexpr std::uint32_t kNoScope = QuantMove::kNoScope;

  std::int64_t element_bytes = 0;                 ///< of a value
  std::variant<ValuesForm, CodesForm> kind = {};  ///< what a bucket has of a box
  std::optional<CodesForm> kept = {};             ///< what engines have of a tensor that is quantised
  /// A box begins at multiples of these and ends there or with the tensor.
  std::int64_t unit_rows = 1;
  std::int64_t unit_cols = 1;
  bool whole_rows = false;         ///< a scale follows from all of a row
  std::uint32_t scope = kNoScope;  ///< index of the scale that it shares with others (Plan::scopes)
  bool negated_exp =
      false;  ///< engines have −e^x of each value x, of which digests are, too (Part::negated_exp)

  bool quantized() const { return kept.has_value(); }

  /// Whether a bucket has the bytes that the trainer holds.
  bool travels_as_held() const {
    return std::visit(
        Overloaded{[](const ValuesForm&) { return true; }, [](const CodesForm&) { return false; }}, kind);
  }

  /// Bytes of a box in a bucket.
  std::int64_t bytes(const Box& box) const {
    return std::visit(Overloaded{[&](const ValuesForm&) { return box.area() * element_bytes; },
                                 [&](const CodesForm& codes) { return codes.bytes(box); }},
                      kind);
  }

  /// Most rows of `box`, whole units from its first on, that take at most `room` bytes.
  std::int64_t rows_within(const Box& box, std::int64_t room) const {
    if (bytes(box) <= room) return box.rows;
    const Box unit{box.row, unit_rows, box.col, box.cols};
    Box top = box;
    top.rows = std::min(room / least_bytes(unit), (box.rows - 1) / unit_rows) * unit_rows;
    while (bytes(top) > room) top.rows -= unit_rows;
    return top.rows;
  }

 private:
  /// Bytes by which a segment grows when `box` is added below it: without the gap before the scales, which a
  /// segment has once.
  std::int64_t least_bytes(const Box& box) const {
    return std::visit(
        Overloaded{[&](const ValuesForm&) { return box.area() * element_bytes; },
                   [&](const CodesForm& codes) { return codes.codes_bytes(box) + codes.scales_bytes(box); }},
        kind);
  }
};

}  // namespace weightcast
