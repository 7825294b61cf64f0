#include "session/held_weights.hpp"

#include <algorithm>

#include "core/units.hpp"
#include "plan/quantizing.hpp"

namespace weightcast {

namespace {

std::int64_t row_bytes(const Tensor& tensor) {
  return tensor.shape.cols() * dtype_bytes(tensor.dtype);
}

}  // namespace

HeldWeights held_weights(const Plan& plan, const Catalog& catalog, std::int64_t trainer) {
  HeldWeights held;
  held.tensors.resize(catalog.size());
  for (const Bucket& bucket : plan.buckets) {
    if (bucket.root != trainer) continue;
    for (std::uint32_t i = 0; i < bucket.segments; ++i) {
      const Segment& segment = plan.segments[bucket.first_segment + i];
      HeldWeights::Rows& rows = held.tensors[segment.tensor];
      const bool fresh = rows.end == 0;
      rows.row = fresh ? segment.box.row : std::min(rows.row, segment.box.row);
      rows.end = std::max(rows.end, segment.box.row + segment.box.rows);
    }
  }
  for (std::uint32_t tensor = 0; tensor < catalog.size(); ++tensor) {
    HeldWeights::Rows& rows = held.tensors[tensor];
    rows.offset = held.bytes;
    held.bytes += round_up((rows.end - rows.row) * row_bytes(catalog[tensor]), kSegmentAlignment);
  }
  return held;
}

HeldPrograms held_programs(const Plan& plan, const Catalog& catalog, std::int64_t trainer,
                           const HeldWeights& held) {
  HeldPrograms programs;
  programs.buckets.resize(plan.buckets.size());
  const auto from = [](const auto& list, std::uint32_t first) {
    return ProgramRange{first, static_cast<std::uint32_t>(list.size()) - first};
  };
  for (std::size_t b = 0; b < plan.buckets.size(); ++b) {
    const Bucket& bucket = plan.buckets[b];
    if (bucket.root != trainer) continue;
    const auto first_move = static_cast<std::uint32_t>(programs.moves.size());
    const auto first_quant = static_cast<std::uint32_t>(programs.quants.size());
    const auto first_box = static_cast<std::uint32_t>(programs.boxes.size());
    for (std::uint32_t i = 0; i < bucket.segments; ++i) {
      const std::uint32_t number = bucket.first_segment + i;
      const Segment& segment = plan.segments[number];
      const Tensor& tensor = catalog[segment.tensor];
      const WireForm& form = plan.wire[segment.tensor];
      const HeldWeights::Rows& rows = held.tensors[segment.tensor];
      const std::int64_t element = dtype_bytes(tensor.dtype);
      const std::int64_t pitch = row_bytes(tensor);
      const std::int64_t offset =
          rows.offset + (segment.box.row - rows.row) * pitch + segment.box.col * element;
      if (!form.codes_travel) {
        programs.moves.push_back(
            {offset, pitch, segment.offset, segment.box.rows, segment.box.cols * element, 0, MoveOp::kCopy});
        programs.segments.push_back(number);
      }
      if (!form.quantized) {
        programs.boxes.push_back({offset, pitch, segment.box, plane_key(tensor, Plane::kValues), 0, number,
                                  static_cast<std::uint8_t>(element)});
        continue;
      }
      QuantMove quant = quant_move(plan, catalog, number, segment.box);
      quant.values = {Space::kSource, 0, offset, pitch};
      if (form.codes_travel) {
        quant.codes = staged_codes(plan, segment);
        quant.scales = staged_scales(plan, segment);
      }
      programs.quants.push_back(quant);
    }
    programs.buckets[b] = {from(programs.moves, first_move), from(programs.quants, first_quant),
                           from(programs.boxes, first_box)};
  }
  return programs;
}

}  // namespace weightcast
