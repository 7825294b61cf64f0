#include "model/blocks/mxfp4_experts.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/units.hpp"
#include "model/blocks/expert_names.hpp"
#include "model/layouts/moe_layout.hpp"

namespace weightcast {

namespace {

/// Elements of a row that share a scale.
constexpr std::int64_t kGroup = 32;

/// Something that is kept of both matrices: codes, scales, a bias.
struct Kept {
  const char* stored;  ///< behind `gate_up_proj` and `down_proj`
  const char* sglang;  ///< behind `w13_weight` and `w2_weight`
  const char* vllm;
  DType dtype;
  std::int64_t group_cols;  ///< elements for each group of a row; 0: one for the whole row
};

constexpr std::array kKept{
    Kept{"_blocks", "_weight", "_weight", DType::kF4E2M1x2, kGroup / 2},
    Kept{"_scales", "_weight_scale", "_weight_scale", DType::kF8E8M0, 1},
    Kept{"_bias", "_weight_bias", "_bias", DType::kF32, 0},
};

std::int64_t cols_of(const Kept& kept, std::int64_t row) {
  return kept.group_cols == 0 ? 1 : row / kGroup * kept.group_cols;
}

/// Rows of gate and up in turn, as they are stored: both at once, from the same byte on.
SlabLayout in_turn(const PlaneMatrix& half) {
  SlabLayout slab = gate_first(half);
  slab.up = slab.gate;
  slab.cols = 2 * half.cols;
  slab.layout.step[3] = slab.cols * half.element;
  return slab;
}

SlabLayout in_order(const PlaneMatrix& matrix) {
  SlabLayout slab = row_major(matrix);
  slab.layout.step[3] = matrix.cols * matrix.element;
  return slab;
}

/// Where an engine wants what, and to what it pads.
struct Places {
  ExpertMatrices matrices;
  std::int64_t hidden_unit = 1;
};

Places places_of(const EngineLayout& layout, const std::string& experts) {
  if (layout.moe_layout == "triton") {
    return {{.w13 = in_turn,
             .w2 = in_order,
             .w13_scales = in_turn,
             .w2_scales = in_order,
             .inner_unit = std::int64_t{2} * kGroup}};
  }
  if (layout.moe_layout == "trtllm") {
    // Up before gate in turn, and then shuffled, which is what the layout does with other models' halves.
    Places places{find_moe_layout("trtllm").matrices(Quantizer{QuantScheme::kMxfp4, QuantRule::kRoundUp}),
                  256};
    places.matrices.inner_unit = 256;
    return places;
  }
  throw UsageError(fmt::format(
      "--moe-layout {}: {} hold codes of MXFP4, gate and up in turn, which are put into layouts triton and "
      "trtllm alone; choose one of these",
      layout.moe_layout, experts));
}

}  // namespace

Mxfp4Experts::Mxfp4Experts(Names names, const InterleavedExpertSizes& sizes)
    : names_(std::move(names)), sizes_(sizes) {}

void Mxfp4Experts::list(const Site& site, TensorList& tensors) const {
  const std::string at = site.canonical + names_.canonical;
  for (const char* const matrix : {".gate_up_proj", ".down_proj"}) {
    const bool down = matrix == std::string_view(".down_proj");
    for (const Kept& kept : kKept) {
      const Shape shape = down ? Shape{sizes_.experts, sizes_.hidden, cols_of(kept, sizes_.inner)}
                               : Shape{sizes_.experts, sizes_.inner, 2 * cols_of(kept, sizes_.hidden)};
      if (kept.dtype == DType::kF32) {
        tensors.add_float32(at + matrix + kept.stored, shape);
      } else {
        tensors.add_coded(at + matrix + kept.stored, kept.dtype, shape);
      }
    }
  }
}

std::optional<StoredForm> Mxfp4Experts::other_stored_form(const Site& site, const Tensor& tensor) const {
  const std::string at = site.canonical + names_.canonical;
  for (const bool down : {false, true}) {
    const std::int64_t rows = down ? sizes_.hidden : 2 * sizes_.inner;
    const std::int64_t groups = (down ? sizes_.inner : sizes_.hidden) / kGroup;
    const std::string matrix = at + (down ? ".down_proj" : ".gate_up_proj");
    if (tensor.name == matrix + "_blocks") {
      return StoredForm{tensor.name, {sizes_.experts, rows, groups, kGroup / 2}};
    }
    if (tensor.name == matrix + "_scales") return StoredForm{tensor.name, {sizes_.experts, rows, groups}};
    if (tensor.name == matrix + "_bias") return StoredForm{tensor.name, {sizes_.experts, rows}};
  }
  return std::nullopt;
}

void Mxfp4Experts::add_parameters(const Site& site, const EngineCut& cut,
                                  std::vector<Parameter>& parameters) const {
  const EngineLayout& layout = cut.layout;
  const std::string from = site.canonical + names_.canonical;
  const Places places = places_of(layout, from);
  const ExpertMatrices& matrices = places.matrices;
  require_divides(layout.option, layout.expert_tp_name(), layout.expert_tp(), "the inner size of " + from,
                  sizes_.inner);
  const std::vector<std::int64_t> held =
      layout.experts.experts_on(site.layer, layout.ep, cut.rank.ep, sizes_.experts, layout.option);
  const std::int64_t stride = ceil_div(sizes_.inner / kGroup, layout.expert_tp()) * kGroup;
  const std::int64_t start = std::min(sizes_.inner, cut.rank.expert_tp * stride);
  const std::int64_t count = std::min(sizes_.inner, start + stride) - start;
  const std::int64_t padded = round_up(stride, matrices.inner_unit);
  const std::int64_t padded_hidden = round_up(sizes_.hidden, places.hidden_unit);
  const bool vllm = layout.engine == Engine::kVllm;
  const std::string at = site.engine + names_.engine + experts_module(layout.engine) + ".";

  // The parameter of all slots, of each of which `boxes_of` says what lies where in its slab.
  const auto add = [&](const std::string& tensor, const std::string& name, const Kept& kept,
                       const SlabLayout& slab, const auto& boxes_of) {
    std::vector<PlacedBox> placed;
    std::int64_t first = 0;
    for (const std::int64_t expert : held) {
      for (const auto& [box, offset] : boxes_of(expert)) {
        const TensorBox part{cut.catalog.at(tensor), box.empty() ? Box{} : box};
        placed.push_back({part, first + offset, slab.layout, slab.rows, slab.cols});
      }
      first += slab.shape.elements() * dtype_bytes(kept.dtype);
    }
    const auto slots = static_cast<std::int64_t>(held.size());
    const Shape shape =
        kept.group_cols == 0 ? Shape{slots, slab.shape[0]} : Shape{slots, slab.shape[0], slab.shape[1]};
    parameters.push_back(
        place(cut.catalog, at + name + (vllm ? kept.vllm : kept.sglang), shape, placed, {kept.dtype}));
  };
  using Boxes = std::vector<std::pair<Box, std::int64_t>>;  // and where they lie in the expert's slab
  for (const Kept& kept : kKept) {
    const Placing placing = kept.dtype == DType::kF8E8M0 ? matrices.w13_scales : matrices.w13;
    const SlabLayout slab = placing({padded, cols_of(kept, padded_hidden), dtype_bytes(kept.dtype)});
    const std::int64_t cols = cols_of(kept, sizes_.hidden);
    add(from + ".gate_up_proj" + kept.stored, "w13", kept, slab, [&](std::int64_t expert) {
      const std::int64_t row = expert * sizes_.inner + start;
      if (slab.gate == slab.up) return Boxes{{{row, count, 0, 2 * cols}, 0}};
      return Boxes{{{row, count, 0, cols}, slab.gate}, {{row, count, cols, cols}, slab.up}};
    });
  }
  for (const Kept& kept : kKept) {
    const Placing placing = kept.dtype == DType::kF8E8M0 ? matrices.w2_scales : matrices.w2;
    const SlabLayout slab = placing({padded_hidden, cols_of(kept, padded), dtype_bytes(kept.dtype)});
    add(from + ".down_proj" + kept.stored, "w2", kept, slab, [&](std::int64_t expert) {
      const std::int64_t row = expert * sizes_.hidden;
      if (kept.group_cols > 0) {
        return Boxes{{{row, sizes_.hidden, cols_of(kept, start), cols_of(kept, count)}, 0}};
      }
      // Added once, by the first rank of those that share an expert; zero on the others.
      return Boxes{{{row, cut.rank.expert_tp == 0 ? sizes_.hidden : 0, 0, 1}, 0}};
    });
  }
}

}  // namespace weightcast
