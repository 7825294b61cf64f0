#include "plan/held_weights.hpp"

#include <algorithm>
#include <utility>

#include "core/units.hpp"

namespace weightcast {

HeldWeights::HeldWeights(std::vector<HeldBox> boxes, std::size_t tensors) : boxes_(std::move(boxes)) {
  std::stable_sort(boxes_.begin(), boxes_.end(),
                   [](const HeldBox& a, const HeldBox& b) { return a.tensor < b.tensor; });
  starts_.reserve(tensors + 1);
  std::size_t next = 0;
  for (std::uint32_t tensor = 0; tensor <= tensors; ++tensor) {
    while (next < boxes_.size() && boxes_[next].tensor < tensor) ++next;
    starts_.push_back(next);
  }
}

OwnWeights own_weights(const Plan& plan, const Catalog& catalog, std::int64_t trainer) {
  struct Rows {
    std::int64_t first = 0;
    std::int64_t end = 0;
  };
  std::vector<Rows> sent(catalog.size());
  for (const Bucket& bucket : plan.buckets) {
    if (bucket.root != trainer) continue;
    for (std::uint32_t i = 0; i < bucket.segments; ++i) {
      const Segment& segment = plan.segments[bucket.first_segment + i];
      Rows& rows = sent[segment.tensor];
      rows.first = rows.end == 0 ? segment.box.row : std::min(rows.first, segment.box.row);
      rows.end = std::max(rows.end, segment.box.row + segment.box.rows);
    }
  }
  std::vector<HeldBox> boxes;
  std::int64_t bytes = 0;
  for (std::uint32_t tensor = 0; tensor < catalog.size(); ++tensor) {
    const auto [first, end] = sent[tensor];
    if (end == first) continue;
    const std::int64_t cols = catalog[tensor].shape.cols();
    const std::int64_t pitch = cols * dtype_bytes(catalog[tensor].dtype);
    boxes.push_back({tensor, {first, end - first, 0, cols}, 0, bytes, pitch});
    bytes += round_up((end - first) * pitch, kSegmentAlignment);
  }
  return {HeldWeights(std::move(boxes), catalog.size()), bytes};
}

}  // namespace weightcast
