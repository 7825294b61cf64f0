#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/catalog.hpp"
#include "model/parameter.hpp"
#include "model/quantization.hpp"

namespace weightcast {

/// The three matrices of one gated expert: gate [I, H], up [I, H], down [H, I], as catalog indices.
struct ExpertTensors {
  std::uint32_t gate = 0;
  std::uint32_t up = 0;
  std::uint32_t down = 0;
};

/// The experts that one rank holds of one layer, in the order of its slots.
struct LocalExperts {
  std::string prefix;                    ///< `model.layers.0.mlp.experts`
  std::span<const ExpertTensors> slots;  ///< contiguous placement: slot e holds expert ep_rank × slots + e
  std::int64_t inner_parts = 1;  ///< each expert's inner size is cut this many ways, a divisor (tp/ep)
  std::int64_t inner_rank = 0;   ///< and this rank holds this part
  const Quantization* quantization = nullptr;  ///< none: their values
};

/// What a layout is asked to hold.
struct ExpertForm {
  std::int64_t inner = 0;        ///< of a whole expert
  std::int64_t inner_parts = 1;  ///< divides it
  std::int64_t hidden = 0;
  DType dtype = DType::kBF16;               ///< of the model's tensors
  std::optional<Quantizer> quantizer = {};  ///< of the parameters
};

/// Where a fused-MoE kernel wants the experts' weights. A layout is one file in this folder.
class MoeLayout {
 public:
  virtual ~MoeLayout() = default;
  virtual std::string name() const = 0;

  /// Throws UsageError when the kernels cannot read such matrices: which dimension, which rule, and what
  /// would do.
  virtual void require(const ExpertForm& form) const = 0;

  /// Appends the rank's parameters of one layer. A shape that the layout cannot hold is a UsageError.
  virtual void add_parameters(const Catalog& catalog, const LocalExperts& experts,
                              std::vector<Parameter>& parameters) const = 0;
};

/// The layout of that name; throws UsageError listing the known ones.
const MoeLayout& find_moe_layout(std::string_view name);

const MoeLayout& triton_moe_layout();
const MoeLayout& triton_kernels_moe_layout();
const MoeLayout& cutlass_moe_layout();
const MoeLayout& trtllm_moe_layout();

/// What triton and cutlass share: w13 [El, 2·It, H] of the two halves in the order given, w2 [El, H, It].
enum class HalfOrder : std::uint8_t { kGateFirst, kUpFirst };
void add_stacked_experts(const Catalog& catalog, const LocalExperts& experts, HalfOrder order,
                         std::vector<Parameter>& parameters);

}  // namespace weightcast
