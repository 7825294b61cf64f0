#include <utility>

#include "model/families/common.hpp"
#include "model/families/families.hpp"

namespace weightcast {

/// GLM-4.5, 4.6 and 4.7: dense layers first, then routed experts, shared ones, and a bias by which experts
/// are chosen. Engines keep the router in float32.
std::unique_ptr<Family> make_glm4_moe(const ModelConfig& config) {
  SizeFields sizes(config);
  AttentionSizes heads = attention_sizes(sizes, config);
  heads.qkv_bias = config.boolean_or({"attention_bias"}, false);
  DecoderParts parts = common_parts(sizes, config, heads.hidden);
  parts.draft_layers = config.count_or({"num_nextn_predict_layers", "num_mtp_layers"}, 0);
  ExpertSizes experts;
  experts.hidden = heads.hidden;
  experts.experts = sizes.integer({"n_routed_experts", "num_local_experts"});
  experts.inner = sizes.integer({"moe_intermediate_size"});
  experts.dtype = parts.dtype;
  const std::int64_t shared = config.count_or({"n_shared_experts"}, 1) * experts.inner;
  LayerBlocks both{input_norm(heads.hidden), attention(heads)};
  if (config.boolean_or({"use_qk_norm"}, false)) {
    both.push_back(head_norm("q", heads.head_dim));
    both.push_back(head_norm("k", heads.head_dim));
  }
  LayerBlocks sparse = both;
  sparse.push_back(experts_norm(heads.hidden));
  sparse.push_back(router(experts.experts, heads.hidden, Replicated::Type::kWidened));
  sparse.push_back(correction_bias(experts.experts));
  sparse.push_back(routed_experts(experts));
  if (shared > 0) sparse.push_back(shared_experts("shared_experts", heads.hidden, shared));
  mix_layers(parts, std::move(sparse), dense_at_first(config, 1), [&] {
    LayerBlocks dense = both;
    dense.push_back(mlp_norm(heads.hidden));
    dense.push_back(gated_mlp({heads.hidden, sizes.integer({"intermediate_size"})}));
    return dense;
  });
  return decoder(std::move(parts), sizes);
}

}  // namespace weightcast
