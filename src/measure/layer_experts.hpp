#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "model/blocks/routed_experts.hpp"
#include "model/family.hpp"

namespace weightcast {

/// The experts of one layer of a model as its config.json alone says them: of any family whose experts are
/// gated, whether this program knows the rest of it or not. Throws UsageError for a model without routed
/// experts, InputError for a config that lacks their sizes.
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
  RoutedExperts experts_;
  Catalog catalog_;
};

}  // namespace weightcast
