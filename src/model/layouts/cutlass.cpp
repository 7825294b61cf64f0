#include <fmt/format.h>

#include "core/error.hpp"
#include "model/layouts/moe_layout.hpp"

namespace weightcast {

namespace {

/// FlashInfer's CUTLASS fused MoE: the shapes of the Triton layout with up before gate (the kernel's first
/// half is the linear one, its second half is gated).
class CutlassLayout final : public MoeLayout {
 public:
  std::string name() const override { return "cutlass"; }

  void require(const ExpertForm& form) const override {
    const std::int64_t element_bytes = dtype_bytes(form.dtype);
    const std::int64_t inner = form.inner / form.inner_parts;
    // The kernels load rows in units of 128 bits.
    constexpr std::int64_t kUnitBytes = 16;
    if (inner * element_bytes % kUnitBytes == 0 && form.hidden * element_bytes % kUnitBytes == 0) return;
    throw UsageError(
        fmt::format("--moe-layout cutlass: the experts' inner size of one rank ({}) and the hidden size ({}) "
                    "must be multiples of {}; use a smaller tp/ep",
                    inner, form.hidden, kUnitBytes / element_bytes));
  }

  void add_parameters(const Catalog& catalog, const LocalExperts& experts,
                      std::vector<Parameter>& parameters) const override {
    add_stacked_experts(catalog, experts, HalfOrder::kUpFirst, parameters);
  }
};

}  // namespace

const MoeLayout& cutlass_moe_layout() {
  static const CutlassLayout layout;
  return layout;
}

}  // namespace weightcast
