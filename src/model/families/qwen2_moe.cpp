#include <utility>

#include "model/families/common.hpp"
#include "model/families/families.hpp"

namespace weightcast {

/// Qwen1.5-MoE and Qwen2-MoE: Qwen2's attention; beside routed experts one that all tokens use, behind a gate
/// of its own.
std::unique_ptr<Family> make_qwen2_moe(const ModelConfig& config) {
  SizeFields sizes(config);
  AttentionSizes heads = attention_sizes(sizes, config);
  heads.qkv_bias = config.boolean_or({"qkv_bias"}, true);
  DecoderParts parts = common_parts(sizes, config, heads.hidden);
  ExpertSizes experts;
  experts.hidden = heads.hidden;
  experts.experts = sizes.integer({"num_experts"});
  experts.inner = sizes.integer({"moe_intermediate_size"});
  experts.dtype = parts.dtype;
  const std::int64_t shared = sizes.integer({"shared_expert_intermediate_size"});
  mix_layers(parts,
             {input_norm(heads.hidden), attention(heads), experts_norm(heads.hidden),
              router(experts.experts, heads.hidden), routed_experts(experts),
              shared_experts("shared_expert", heads.hidden, shared), shared_expert_gate(heads.hidden)},
             dense_by_step(config), [&] {
               return LayerBlocks{input_norm(heads.hidden), attention(heads), mlp_norm(heads.hidden),
                                  gated_mlp({heads.hidden, sizes.integer({"intermediate_size"})})};
             });
  return decoder(std::move(parts), sizes);
}

}  // namespace weightcast
