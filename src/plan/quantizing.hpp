#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/executor.hpp"
#include "kernels/quant_move.hpp"
#include "model/catalog.hpp"
#include "plan/plan.hpp"

namespace weightcast {

/// The key of a plane's digests: of values and codes the tensor's own.
std::uint64_t plane_key(const Tensor& tensor, Plane plane);

/// The quantiser's work for `box`, a part of the box of segment number `segment`: all but where its values,
/// codes and scales lie.
QuantMove quant_move(const Plan& plan, const Catalog& catalog, std::uint32_t segment, const Box& box);

/// Where a segment's codes, and its scales, lie in its bucket when they travel in that form.
MatrixPlace staged_codes(const CodesForm& form, const Segment& segment);
MatrixPlace staged_scales(const CodesForm& form, const Segment& segment);

/// The scale of each of the plan's scopes; `largest[i]` is the largest magnitude in scope i.
std::vector<GlobalScale> scales_of_scopes(const Plan& plan, std::span<const float> largest);

/// What `parameter`, whose elements are scales of scopes, holds; `scales[i]` is the scale of scope i.
std::vector<float> scalar_values(const Plan& plan, const Parameter& parameter,
                                 std::span<const GlobalScale> scales);

}  // namespace weightcast
