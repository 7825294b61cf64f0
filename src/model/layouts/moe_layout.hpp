#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.hpp"
#include "core/quantizer.hpp"
#include "model/layouts/expert_matrices.hpp"

namespace weightcast {

/// What a layout is asked to hold.
struct ExpertForm {
  std::int64_t inner = 0;        ///< of a whole expert
  std::int64_t inner_parts = 1;  ///< divides it
  std::int64_t hidden = 0;
  DType dtype = DType::kBF16;               ///< of the model's tensors
  std::optional<Quantizer> quantizer = {};  ///< of the parameters
};

/// Which weights the kernels of a layout read.
struct TakenWeights {
  bool values = true;      ///< as in the model
  bool only_bf16 = false;  ///< those of no other type
  std::vector<QuantScheme> schemes = {};
};

/// A size that kernels want to be a multiple of something.
struct SizeRule {
  enum class Size : std::uint8_t {
    kInner,       ///< of a whole expert
    kInnerShare,  ///< of the part on one rank
    kHidden,
  };
  Size size = Size::kHidden;
  std::int64_t multiple = 1;  ///< elements
  const char* reason = "";    ///< for people
};

/// Where a fused-MoE kernel wants the experts' weights. A layout is one file in this folder.
class MoeLayout {
 public:
  virtual ~MoeLayout() = default;
  virtual std::string name() const = 0;

  virtual TakenWeights takes() const = 0;

  /// The rules for sizes, of weights that the layout takes.
  virtual std::vector<SizeRule> rules(const ExpertForm& form) const = 0;

  /// Where the matrices of such weights lie.
  virtual ExpertMatrices matrices(const std::optional<Quantizer>& quantizer) const = 0;

  /// Throws UsageError when the kernels cannot read such matrices: which dimension, which rule, and what
  /// would do.
  void require(const ExpertForm& form) const;

  /// Appends the rank's parameters of one layer; throws as add_experts() does.
  void add_parameters(const Catalog& catalog, const LocalExperts& experts,
                      std::vector<Parameter>& parameters) const;
};

/// All layouts, in the order in which people are told of them.
std::span<const MoeLayout* const> moe_layouts();

/// The layout of that name; throws UsageError listing the known ones.
const MoeLayout& find_moe_layout(std::string_view name);

const MoeLayout& triton_moe_layout();
const MoeLayout& triton_kernels_moe_layout();
const MoeLayout& cutlass_moe_layout();
const MoeLayout& trtllm_moe_layout();
const MoeLayout& trtllm_shuffled_moe_layout();
const MoeLayout& deepgemm_moe_layout();
const MoeLayout& deepgemm_mega_moe_layout();
const MoeLayout& cute_dsl_moe_layout();
const MoeLayout& vllm_cpu_moe_layout();

/// What several kernels want: whole blocks of scales on each rank, in rows of w13 and in columns of w2; and
/// rows of K that are whole units of 128 bits, as TMA loads them.
std::vector<SizeRule> whole_blocks(const Quantizer& quantizer);
std::vector<SizeRule> whole_loads(const ExpertForm& form);

}  // namespace weightcast
