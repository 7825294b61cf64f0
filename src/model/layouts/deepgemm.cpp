#include "core/units.hpp"
#include "model/layouts/moe_layout.hpp"
#include "model/layouts/packed_scales.hpp"

namespace weightcast {

namespace {

/// [gate ; up], a multiple of four rows each.
SlabLayout packed_gate_first(const PlaneMatrix& half) {
  SlabLayout slab = packed_scales(half, 2 * half.rows, {}, kScaleWord);
  slab.up = half.rows * kScaleWord;
  return slab;
}

SlabLayout packed(const PlaneMatrix& matrix) {
  SlabLayout slab = packed_scales(matrix, round_up(matrix.rows, 4), {}, kScaleWord);
  slab.rows = round_up(matrix.rows, 4);
  return slab;
}

bool packs_scales(const std::optional<Quantizer>& quantizer) {
  return quantizer && quantizer->rule == QuantRule::kUe8m0;
}

/// DeepGEMM's grouped products: w13 and w2 as the Triton layout has them, gate first. The scales of fp8-block
/// are fp32, row by row (SM90); of fp8-block:ue8m0 they are exponent bytes, one for each row of the weight
/// and 128 of its columns, packed as SM100 wants them: float8_e8m0fnu [El, Kp, N, 4] with N = 2·It of w13 and
/// up(H,4) of w2, Kp = ⌈⌈K/128⌉/4⌉.
class DeepGemmLayout final : public MoeLayout {
 public:
  std::string name() const override { return "deepgemm"; }

  TakenWeights takes() const override { return {.schemes = {QuantScheme::kFp8Block}}; }

  std::vector<SizeRule> rules(const ExpertForm& form) const override {
    std::vector<SizeRule> rules;
    if (form.quantizer) rules = whole_blocks(*form.quantizer);
    for (const SizeRule& rule : whole_loads(form)) rules.push_back(rule);
    return rules;
  }

  ExpertMatrices matrices(const std::optional<Quantizer>& quantizer) const override {
    if (packs_scales(quantizer)) {
      return {.w13 = gate_first,
              .w2 = row_major,
              .w13_scales = packed_gate_first,
              .w2_scales = packed,
              .scale_for_each_row = true};
    }
    return {gate_first, row_major, gate_first, row_major};
  }
};

}  // namespace

const MoeLayout& deepgemm_moe_layout() {
  static const DeepGemmLayout layout;
  return layout;
}

}  // namespace weightcast
