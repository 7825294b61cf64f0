#include "model/layouts/expert_matrices.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "core/error.hpp"
#include "core/units.hpp"

namespace weightcast {

namespace {

constexpr const char* kOption = "--moe-layout";

/// The experts of one rank, and the part of their inner size.
class ExpertParameters {
 public:
  ExpertParameters(const Catalog& catalog, const LocalExperts& experts, const ExpertMatrices& matrices)
      : catalog_(catalog), experts_(experts), matrices_(matrices), quantization_(experts.quantization) {
    const std::uint32_t gate = experts.slots.front().gate;
    const Shape shape = quantization_ != nullptr ? quantization_->shape(gate) : catalog[gate].shape;
    inner_ = shape.rows();
    hidden_ = shape.cols();
    padded_ = round_up(inner_ / experts.inner_parts, matrices.inner_unit);
    const std::int64_t stride = matrices.padded_after_cut ? inner_ / experts.inner_parts : padded_;
    start_ = std::min(inner_, experts.inner_rank * stride);
    count_ = std::min(inner_, start_ + stride) - start_;
    if (matrices.scale_for_each_row && quantization_ != nullptr &&
        quantization_->origin() == Quantization::Origin::kStored) {
      throw UsageError(
          fmt::format("{}: stored scales of {} cannot be repeated for each row; use layout triton", kOption,
                      catalog[gate].name));
    }
  }

  void add_w13(std::vector<Parameter>& parameters) const {
    add(".w13_weight", Matrix::kW13, matrices_.w13, matrices_.w13_scales, parameters);
  }
  void add_w2(std::vector<Parameter>& parameters) const {
    add(".w2_weight", Matrix::kW2, matrices_.w2, matrices_.w2_scales, parameters);
  }

  /// Of stored scales the engine makes them, which knows whether gate's and up's are one.
  void add_output_scalars(std::vector<Parameter>& parameters) const {
    if (quantization_ == nullptr || !quantization_->has_global() || matrices_.scalars.gate == nullptr ||
        quantization_->origin() == Quantization::Origin::kStored) {
      return;
    }
    const auto add_one = [&](const char* name, Matrix matrix, float factor, float second_factor) {
      const auto count = static_cast<std::int64_t>(experts_.slots.size());
      Parameter scalars{experts_.prefix + name, DType::kF32, {count}, {}, {}};
      for (const ExpertTensors& expert : experts_.slots) {
        const auto offset = static_cast<std::int64_t>(scalars.scalars.size()) * 4;
        scalars.scalars.push_back({offset, scope(expert, matrix), factor, second_factor});
      }
      parameters.push_back(std::move(scalars));
    };
    const auto [a, b] = experts_.activations;
    add_one(matrices_.scalars.gate, Matrix::kW13, a, 1);
    add_one(matrices_.scalars.inner, Matrix::kW13, a, 1 / b);
    add_one(matrices_.scalars.down, Matrix::kW2, b, 1);
  }

 private:
  enum class Matrix : std::uint8_t { kW13, kW2 };

  void add(const char* suffix, Matrix matrix, Placing placing, Placing scales,
           std::vector<Parameter>& parameters) const {
    const std::string name = experts_.prefix + suffix;
    if (quantization_ == nullptr) {
      const PlaneType type{catalog_[experts_.slots.front().gate].dtype};
      parameters.push_back(plane(name, matrix, placing, type, type.form));
      return;
    }
    const std::int64_t cols = matrix == Matrix::kW13 ? hidden_ : inner_;
    const auto add_plane = [&](const std::string& of, Plane kind, Placing place_it) {
      parameters.push_back(
          plane(of, matrix, place_it, quantization_->type(kind, cols), quantization_->form(kind, cols)));
    };
    add_plane(name, Plane::kCodes, placing);
    if (matrices_.scale_for_each_row) {
      const PlaneForm form{Plane::kScales, 1, quantization_->form(Plane::kScales, cols).block_cols};
      parameters.push_back(
          plane(name + quantization_->scales_suffix(), matrix, scales, {DType::kF8E8M0, form}, form));
    } else if (quantization_->has_scales()) {
      add_plane(name + quantization_->scales_suffix(), Plane::kScales, scales);
    }
    if (quantization_->has_global()) {
      std::vector<std::vector<std::uint32_t>> groups;
      groups.reserve(experts_.slots.size());
      for (const ExpertTensors& expert : experts_.slots) {
        // Gate first, whatever the order of their rows.
        const bool w13 = matrix == Matrix::kW13;
        groups.push_back(w13 ? std::vector{expert.gate, expert.up} : std::vector{expert.down});
      }
      parameters.push_back(
          global_scales(catalog_, name + quantization_->global_suffix(), groups, *quantization_));
    }
  }

  /// `type` is that of what feeds it, `form` what it is of the values: of stored planes they differ.
  Parameter plane(const std::string& name, Matrix matrix, Placing placing, const PlaneType& type,
                  const PlaneForm& form) const {
    const std::int64_t element = dtype_bytes(type.dtype);
    const bool w13 = matrix == Matrix::kW13;
    const Box whole = form.of(w13 ? Box{0, padded_, 0, hidden_} : Box{0, hidden_, 0, padded_});
    const SlabLayout slab = placing({whole.rows, whole.cols, element});
    const std::int64_t slab_bytes = slab.shape.elements() * element;
    std::vector<PlacedBox> boxes;
    boxes.reserve((w13 ? 2 : 1) * experts_.slots.size());
    std::int64_t start = 0;
    for (const ExpertTensors& expert : experts_.slots) {
      const auto add_matrix = [&](std::uint32_t tensor, std::int64_t at) {
        boxes.push_back({box(form.plane, tensor, matrix, scope(expert, matrix)), start + at, slab.layout,
                         slab.rows, slab.cols});
      };
      if (!w13) {
        add_matrix(expert.down, 0);
      } else if (slab.gate < slab.up) {
        add_matrix(expert.gate, slab.gate);
        add_matrix(expert.up, slab.up);
      } else {
        add_matrix(expert.up, slab.up);
        add_matrix(expert.gate, slab.gate);
      }
      start += slab_bytes;
    }
    std::array<std::int64_t, Shape::kMaxDims> extents{static_cast<std::int64_t>(experts_.slots.size())};
    std::copy(slab.shape.extents().begin(), slab.shape.extents().end(), extents.begin() + 1);
    const std::span<const std::int64_t> all(extents);
    return place(catalog_, name, Shape(all.first(1 + slab.shape.dims())), boxes, type);
  }

  TensorBox box(Plane kind, std::uint32_t tensor, Matrix matrix, std::uint32_t scope) const {
    if (count_ == 0) return {tensor, {}, scope};  // a rank whose share is padding alone
    const Box values =
        matrix == Matrix::kW13 ? Box{start_, count_, 0, hidden_} : Box{0, hidden_, start_, count_};
    if (quantization_ == nullptr) return {tensor, values};
    return quantization_->box(kind, tensor, values, scope, kOption);
  }

  static std::uint32_t scope(const ExpertTensors& expert, Matrix matrix) {
    return matrix == Matrix::kW13 ? std::min(expert.gate, expert.up) : expert.down;
  }

  const Catalog& catalog_;
  const LocalExperts& experts_;
  const ExpertMatrices& matrices_;
  const Quantization* quantization_;
  std::int64_t inner_ = 0;
  std::int64_t hidden_ = 0;
  std::int64_t padded_ = 0;  ///< of the inner size on each rank
  std::int64_t start_ = 0;   ///< the rank has [start, start + count) of it
  std::int64_t count_ = 0;
};

SlabLayout halves(const PlaneMatrix& half) {
  SlabLayout slab;
  slab.shape = {2 * half.rows, half.cols};
  slab.rows = half.rows;
  slab.cols = half.cols;
  return slab;
}

}  // namespace

void add_experts(const Catalog& catalog, const LocalExperts& experts, const ExpertMatrices& matrices,
                 std::vector<Parameter>& parameters) {
  const ExpertParameters rank(catalog, experts, matrices);
  rank.add_w13(parameters);
  rank.add_w2(parameters);
  rank.add_output_scalars(parameters);
}

SlabLayout gate_first(const PlaneMatrix& half) {
  SlabLayout slab = halves(half);
  slab.up = half.rows * half.cols * half.element;
  return slab;
}

SlabLayout up_first(const PlaneMatrix& half) {
  SlabLayout slab = halves(half);
  slab.gate = half.rows * half.cols * half.element;
  return slab;
}

SlabLayout row_major(const PlaneMatrix& matrix) {
  SlabLayout slab;
  slab.shape = {matrix.rows, matrix.cols};
  slab.rows = matrix.rows;
  slab.cols = matrix.cols;
  return slab;
}

}  // namespace weightcast
