#include "model/families/halves.hpp"

namespace weightcast {

LayerBlocks dense_half(SizeFields& sizes, std::int64_t hidden) {
  return {mlp_norm(hidden), gated_mlp({hidden, sizes.integer({"intermediate_size"})})};
}

SparseHalf sparse_sizes(SizeFields& sizes, const ModelConfig& config, std::int64_t hidden) {
  SparseHalf half;
  half.experts.hidden = hidden;
  half.experts.experts = sizes.integer({"n_routed_experts", "num_local_experts"});
  half.experts.inner = sizes.integer({"moe_intermediate_size"});
  half.experts.dtype = config.dtype();
  const std::int64_t unsaid = config.is_null({"n_shared_experts"}) ? 0 : 1;
  half.shared = config.count_or({"n_shared_experts"}, unsaid) * half.experts.inner;
  return half;
}

LayerBlocks sparse_half(const SparseHalf& half) {
  const std::int64_t hidden = half.experts.hidden;
  LayerBlocks blocks{experts_norm(hidden), router(half.experts.experts, hidden, half.router)};
  if (half.bias) blocks.push_back(correction_bias(half.experts.experts));
  blocks.push_back(routed_experts(half.experts));
  if (half.shared > 0) blocks.push_back(shared_experts("shared_experts", hidden, half.shared));
  return blocks;
}

LayerBlocks gated_sparse_half(SizeFields& sizes, const ModelConfig& config, std::int64_t hidden) {
  ExpertSizes experts;
  experts.hidden = hidden;
  experts.experts = sizes.integer({"num_experts"});
  experts.inner = sizes.integer({"moe_intermediate_size"});
  experts.dtype = config.dtype();
  const std::int64_t shared = sizes.integer({"shared_expert_intermediate_size"});
  return {experts_norm(hidden), router(experts.experts, hidden), routed_experts(experts),
          shared_experts("shared_expert", hidden, shared), shared_expert_gate(hidden)};
}

LayerBlocks joined(LayerBlocks first, const LayerBlocks& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

}  // namespace weightcast
