#include <bit>

#include "model/layouts/moe_layout.hpp"
#include "model/layouts/row_digits.hpp"

namespace weightcast {

namespace {

/// Element (r, c) of the matrix at position c × `rows` + r.
SlabLayout transposed(const PlaneMatrix& matrix, std::int64_t rows) {
  SlabLayout slab;
  slab.shape = {matrix.cols, rows};
  slab.rows = matrix.rows;
  slab.cols = matrix.cols;
  const auto bits = std::countr_zero(static_cast<std::uint64_t>(matrix.element));
  slab.layout =
      in_units(row_digits({}, matrix.element), static_cast<std::uint8_t>(bits), rows * matrix.element);
  return slab;
}

SlabLayout transposed_gate_first(const PlaneMatrix& half) {
  SlabLayout slab = transposed(half, 2 * half.rows);
  slab.up = half.rows * half.element;
  return slab;
}

SlabLayout transposed_whole(const PlaneMatrix& matrix) {
  return transposed(matrix, matrix.rows);
}

/// The matrices of the Triton layout, each transposed: `w13[e, h, r]` and `w2[e, j, h]`, so [El, H, 2·It] and
/// [El, It, H]. (SGLang's triton_kernels runner for bf16 weights.)
class TritonKernelsLayout final : public MoeLayout {
 public:
  std::string name() const override { return "triton-kernels"; }

  TakenWeights takes() const override { return {}; }

  std::vector<SizeRule> rules(const ExpertForm& /*form*/) const override { return {}; }

  ExpertMatrices matrices(const std::optional<Quantizer>& /*quantizer*/) const override {
    return {transposed_gate_first, transposed_whole};
  }
};

}  // namespace

const MoeLayout& triton_kernels_moe_layout() {
  static const TritonKernelsLayout layout;
  return layout;
}

}  // namespace weightcast
