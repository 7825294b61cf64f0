#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "model/family.hpp"
#include "model/layouts/expert_matrices.hpp"

namespace weightcast {

/// The experts of one layer of a model, and what is known of them from its config.json alone: of any family
/// whose experts are gated, whether this program knows the rest of it or not.
struct ExpertSizes {
  std::int64_t hidden = 0;
  std::int64_t inner = 0;
  std::int64_t experts = 0;
  DType dtype = DType::kBF16;

  /// Bytes of the values of one expert.
  std::int64_t expert_bytes() const { return 3 * hidden * inner * dtype_bytes(dtype); }
};

/// Throws UsageError for a model without routed experts, InputError for a config that lacks their sizes.
ExpertSizes expert_sizes(const ModelConfig& config);

/// A model that is nothing but those experts, for `bench --layouts`. No checkpoint has it, no trainer either.
class LayerExperts final : public Family {
 public:
  explicit LayerExperts(const ExpertSizes& sizes);

  const Catalog& catalog() const override { return catalog_; }
  /// All of them on one rank. Throws UsageError for what the MoE layout or the quantiser does not take.
  std::vector<Parameter> parameters(const EngineLayout& layout, const EngineRank& rank) const override;
  std::optional<StoredForm> other_stored_form(const Tensor& tensor) const override;
  bool may_ignore(std::string_view stored_name) const override;

 private:
  ExpertSizes sizes_;
  Catalog catalog_;
  std::vector<ExpertTensors> slots_;
};

}  // namespace weightcast
