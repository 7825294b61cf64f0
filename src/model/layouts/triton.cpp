#include "model/layouts/moe_layout.hpp"

namespace weightcast {

namespace {

/// The Triton fused-MoE layout: `w13[e, r, h] = gate[s(r), h]` for r < It, `up[s(r − It), h]` above, with
/// s(i) = inner_rank·It + i; `w2[e, h, j] = down[h, s(j)]`. (SGLang and vLLM `fused_moe_triton`.)
class TritonLayout final : public MoeLayout {
 public:
  std::string name() const override { return "triton"; }

  void require(const ExpertForm& /*form*/) const override {}

  void add_parameters(const Catalog& catalog, const LocalExperts& experts,
                      std::vector<Parameter>& parameters) const override {
    add_stacked_experts(catalog, experts, HalfOrder::kGateFirst, parameters);
  }
};

}  // namespace

const MoeLayout& triton_moe_layout() {
  static const TritonLayout layout;
  return layout;
}

}  // namespace weightcast
