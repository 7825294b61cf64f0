#include "measure/layer_experts.hpp"

#include <fmt/format.h>

#include "core/error.hpp"
#include "model/blocks/tensor_lists.hpp"
#include "model/linears.hpp"

namespace weightcast {

namespace {

Site layer_0() {
  return {0, "model.layers.0.mlp.experts", "model.layers.0.mlp.experts", ""};
}

}  // namespace

ExpertSizes expert_sizes(const ModelConfig& config) {
  ExpertSizes sizes;
  sizes.experts = config.integer_or({"num_experts", "num_local_experts", "n_routed_experts"}, 0);
  if (sizes.experts == 0) {
    throw UsageError(fmt::format(
        "--layouts: {} has no routed experts (num_experts, num_local_experts or n_routed_experts); name "
        "the config of a mixture-of-experts model",
        config.origin()));
  }
  sizes.hidden = config.integer({"hidden_size"});
  // Families without dense layers have no second name.
  sizes.inner = config.integer({"moe_intermediate_size", "intermediate_size"});
  sizes.dtype = config.dtype();
  const auto matrices = 3.0 * static_cast<double>(sizes.experts);
  require_plausible(fmt::format("{}: {} experts of hidden_size {} and inner size {}", config.origin(),
                                sizes.experts, sizes.hidden, sizes.inner),
                    matrices,
                    matrices * static_cast<double>(sizes.hidden * sizes.inner * dtype_bytes(sizes.dtype)));
  return sizes;
}

LayerExperts::LayerExperts(const ExpertSizes& sizes) : experts_({"", "", ""}, sizes) {
  CatalogList list(catalog_, sizes.dtype, nullptr);
  list.set_layer(0);
  experts_.list(layer_0(), list);
}

std::vector<Parameter> LayerExperts::parameters(const EngineLayout& layout, const EngineRank& rank) const {
  const Linears linears(catalog_, layout, std::nullopt);
  std::vector<Parameter> parameters;
  experts_.add_parameters(layer_0(), {catalog_, layout, rank, linears}, parameters);
  return parameters;
}

std::optional<StoredForm> LayerExperts::other_stored_form(const Tensor& /*tensor*/) const {
  return std::nullopt;
}

bool LayerExperts::may_ignore(std::string_view /*stored_name*/) const {
  return false;
}

}  // namespace weightcast
