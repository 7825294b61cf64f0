#include "plan/quantizing.hpp"

#include <algorithm>

#include "core/hash.hpp"

namespace weightcast {

std::uint64_t plane_key(const Tensor& tensor, Plane plane) {
  return plane == Plane::kScales ? hash_text(tensor.name + "#scales") : hash_text(tensor.name);
}

QuantMove quant_move(const Plan& plan, const Catalog& catalog, std::uint32_t segment, const Box& box) {
  const std::uint32_t number = plan.segments[segment].tensor;
  const Tensor& tensor = catalog[number];
  const WireForm& form = plan.wire[number];
  const CodesForm& kept = form.kept.value();
  QuantMove move;
  move.quantizer = plan.topology.engine.quantizer.value();
  move.rows = box.rows;
  move.cols = box.cols;
  move.scale_bytes = kept.scale_bytes;
  if (kept.scale_bytes > 0) {
    move.scale_rows = kept.scales.block_rows;
    move.scale_cols = kept.scales.block_cols;
    move.scales_box = kept.scales.of(box);
  }
  if (form.whole_rows) {
    move.cols_before = box.col;
    move.cols_behind = tensor.shape.cols() - box.col - box.cols;
  }
  move.scope = form.scope;
  move.codes_box = kept.codes.of(box);
  move.codes_key = plane_key(tensor, Plane::kCodes);
  move.scales_key = plane_key(tensor, Plane::kScales);
  move.segment = segment;
  return move;
}

MatrixPlace staged_codes(const CodesForm& form, const Segment& segment) {
  return {Space::kStaging, 0, segment.offset, form.codes.of(segment.box).cols};
}

MatrixPlace staged_scales(const CodesForm& form, const Segment& segment) {
  if (form.scale_bytes == 0) return {};
  return {Space::kStaging, 0, segment.offset + form.scales_offset(segment.box),
          form.scales.of(segment.box).cols * form.scale_bytes};
}

std::vector<GlobalScale> scales_of_scopes(const Plan& plan, std::span<const float> largest) {
  std::vector<GlobalScale> scales;
  scales.reserve(largest.size());
  for (const float amax : largest) {
    scales.push_back(global_scale(plan.topology.engine.quantizer.value(), amax));
  }
  return scales;
}

std::vector<float> scalar_values(const Plan& plan, const Parameter& parameter,
                                 std::span<const GlobalScale> scales) {
  std::vector<float> values(static_cast<std::size_t>(parameter.bytes() / 4));
  for (const Scalar& scalar : parameter.scalars) {
    const auto found = std::lower_bound(plan.scopes.begin(), plan.scopes.end(), scalar.scope);
    values[static_cast<std::size_t>(scalar.offset / 4)] =
        scalar.value(scales[static_cast<std::size_t>(found - plan.scopes.begin())].stored);
  }
  return values;
}

}  // namespace weightcast
