#include "launch/layer_experts.hpp"

#include <fmt/format.h>

#include "core/error.hpp"
#include "model/layouts/moe_layout.hpp"
#include "model/linears.hpp"

namespace weightcast {

namespace {

constexpr const char* kPrefix = "model.layers.0.mlp.experts";

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

LayerExperts::LayerExperts(const ExpertSizes& sizes) : sizes_(sizes) {
  for (std::int64_t expert = 0; expert < sizes.experts; ++expert) {
    const auto add = [&](const char* matrix, std::int64_t out, std::int64_t in) {
      return catalog_.add(fmt::format("{}.{}.{}.weight", kPrefix, expert, matrix), sizes.dtype, {out, in});
    };
    ExpertTensors tensors;
    tensors.gate = add("gate_proj", sizes.inner, sizes.hidden);
    tensors.up = add("up_proj", sizes.inner, sizes.hidden);
    tensors.down = add("down_proj", sizes.hidden, sizes.inner);
    slots_.push_back(tensors);
  }
}

std::vector<Parameter> LayerExperts::parameters(const EngineLayout& layout,
                                                const EngineRank& /*rank*/) const {
  const Linears linears(catalog_, layout, std::nullopt);
  const Quantization* const quantization = linears.quantization({&slots_.front().gate, 1});
  const MoeLayout& moe_layout = find_moe_layout(layout.moe_layout);
  moe_layout.require({sizes_.inner, 1, sizes_.hidden, sizes_.dtype,
                      quantization ? std::optional(quantization->quantizer()) : std::nullopt});
  std::vector<Parameter> parameters;
  moe_layout.add_parameters(catalog_, {kPrefix, slots_, 1, 0, quantization, layout.activations}, parameters);
  return parameters;
}

std::optional<StoredForm> LayerExperts::other_stored_form(const Tensor& /*tensor*/) const {
  return std::nullopt;
}

bool LayerExperts::may_ignore(std::string_view /*stored_name*/) const {
  return false;
}

}  // namespace weightcast
