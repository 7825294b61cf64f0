#include "model/layouts/moe_layout.hpp"

namespace weightcast {

namespace {

/// The Triton fused-MoE layout: `w13[e, r, h] = gate[s(r), h]` for r < It, `up[s(r − It), h]` above, with
/// s(i) = inner_rank·It + i; `w2[e, h, j] = down[h, s(j)]`. Scales lie in the same order, row by row. (SGLang
/// and vLLM `fused_moe_triton`.)
class TritonLayout final : public MoeLayout {
 public:
  std::string name() const override { return "triton"; }

  TakenWeights takes() const override {
    using enum QuantScheme;
    return {.schemes = {kFp8Block, kFp8Tensor, kFp8Channel, kMxfp8}};
  }

  std::vector<SizeRule> rules(const ExpertForm& form) const override {
    return form.quantizer ? whole_blocks(*form.quantizer) : std::vector<SizeRule>();
  }

  ExpertMatrices matrices(const std::optional<Quantizer>& /*quantizer*/) const override {
    return {gate_first, row_major, gate_first, row_major};
  }
};

}  // namespace

const MoeLayout& triton_moe_layout() {
  static const TritonLayout layout;
  return layout;
}

}  // namespace weightcast
