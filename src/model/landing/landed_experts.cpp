#include "model/landing/landed_experts.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "core/error.hpp"
#include "core/units.hpp"
#include "model/layouts/moe_layout.hpp"

namespace weightcast {

namespace {

constexpr std::string_view kInBlocks = "vllm-cpu";

/// What feeds a matrix: the one box of one tensor that fills its upper left corner.
TensorBox box_of(const LandedParameter& landed, const Box& matrix, const std::vector<std::uint32_t>& numbers,
                 const std::string& origin) {
  TensorBox from;
  std::size_t boxes = 0;
  bool plain = true;
  for (const Landing& landing : landed.landings) {
    const Box common = landing.place().intersect(matrix);
    if (common.empty()) continue;
    ++boxes;
    plain = plain && !landing.turned && common.row == matrix.row && common.col == matrix.col;
    from.tensor = numbers[landing.tensor];
    from.box = {landing.box.row + common.row - landing.row, common.rows,
                landing.box.col + common.col - landing.col, common.cols};
  }
  if (boxes <= 1 && plain) return from;
  throw InputError(fmt::format(
      "{}: parameter {}, {}: is not one box of one tensor as it is, which is all that --moe-layout {} is put "
      "on top of; use --moe-layout triton",
      origin, landed.name, matrix.to_string(), kInBlocks));
}

}  // namespace

void require_expert_layout(const EngineLayout& layout) {
  if (layout.quantizer) {
    throw UsageError(
        "--quantize: not together with --landing, whose parameters are as the engine loads them; "
        "leave one of them out");
  }
  if (layout.moe_layout == EngineLayout().moe_layout || layout.moe_layout == kInBlocks) return;
  throw UsageError(
      fmt::format("--moe-layout {}: is not put on top of what an engine's loader has done "
                  "(--landing); {} and {} are",
                  layout.moe_layout, EngineLayout().moe_layout, kInBlocks));
}

Parameter place_experts(const LandedParameter& landed, const std::vector<std::uint32_t>& numbers,
                        const Catalog& catalog, const EngineLayout& layout, const std::string& origin) {
  const bool w13 = landed.experts == ExpertWeights::kW13;
  const std::int64_t experts = landed.shape[0];
  const std::int64_t halves = w13 ? 2 : 1;
  const std::int64_t rows = landed.shape[1] / halves;
  const std::int64_t cols = landed.shape[2];
  if (landed.shape[1] % halves != 0) {
    throw InputError(fmt::format("{}: parameter {} {}: gate and up have not as many rows; mark it as w2",
                                 origin, landed.name, landed.shape.to_string()));
  }
  if (!landed.left.empty()) {
    throw InputError(
        fmt::format("{}: parameter {}: part of it is left as it is, which has no place in the layout {}; "
                    "leave --moe-layout out, or learn the map anew",
                    origin, landed.name, layout.moe_layout));
  }
  const MoeLayout& moe_layout = find_moe_layout(layout.moe_layout);
  moe_layout.require({w13 ? rows : cols, 1, w13 ? cols : rows, landed.dtype});
  const ExpertMatrices matrices = moe_layout.matrices(std::nullopt);
  const std::int64_t element = dtype_bytes(landed.dtype);
  const SlabLayout slab = w13 ? matrices.w13({round_up(rows, matrices.inner_unit), cols, element})
                              : matrices.w2({rows, round_up(cols, matrices.inner_unit), element});
  std::vector<PlacedBox> boxes;
  for (std::int64_t expert = 0; expert < experts; ++expert) {
    const std::int64_t start = expert * slab.shape.elements() * element;
    for (std::int64_t half = 0; half < halves; ++half) {
      const Box matrix{(expert * halves + half) * rows, rows, 0, cols};
      const std::int64_t at = !w13 ? 0 : half == 0 ? slab.gate : slab.up;
      boxes.push_back(
          {box_of(landed, matrix, numbers, origin), start + at, slab.layout, slab.rows, slab.cols});
    }
  }
  const std::array<std::int64_t, 3> extents{experts, slab.shape[0], slab.shape[1]};
  return place(catalog, landed.name, Shape(std::span<const std::int64_t>(extents)), boxes, {landed.dtype});
}

}  // namespace weightcast
