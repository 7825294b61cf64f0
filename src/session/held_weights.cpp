#include "session/held_weights.hpp"

#include <algorithm>

#include "core/hash.hpp"
#include "core/units.hpp"

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
  for (std::size_t b = 0; b < plan.buckets.size(); ++b) {
    const Bucket& bucket = plan.buckets[b];
    if (bucket.root != trainer) continue;
    programs.buckets[b] = {static_cast<std::uint32_t>(programs.moves.size()), bucket.segments};
    for (std::uint32_t i = 0; i < bucket.segments; ++i) {
      const std::uint32_t number = bucket.first_segment + i;
      const Segment& segment = plan.segments[number];
      const Tensor& tensor = catalog[segment.tensor];
      const HeldWeights::Rows& rows = held.tensors[segment.tensor];
      const std::int64_t element = dtype_bytes(tensor.dtype);
      const std::int64_t pitch = row_bytes(tensor);
      const std::int64_t offset =
          rows.offset + (segment.box.row - rows.row) * pitch + segment.box.col * element;
      programs.moves.push_back(
          {offset, pitch, segment.offset, segment.box.rows, segment.box.cols * element, 0, MoveOp::kCopy});
      programs.boxes.push_back({offset, pitch, segment.box, hash_text(tensor.name), 0, number,
                                static_cast<std::uint8_t>(element)});
    }
  }
  return programs;
}

}  // namespace weightcast
