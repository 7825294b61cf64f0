#include <string>

#include "model/blocks/head_vector.hpp"
#include "model/blocks/interleaved_experts.hpp"
#include "model/families/common.hpp"
#include "model/families/families.hpp"

namespace weightcast {

/// gpt-oss in bfloat16: attention with sinks, experts stored transposed, biases everywhere. vLLM has names of
/// its own for the embedding and the attention.
std::unique_ptr<Family> make_gpt_oss(const ModelConfig& config) {
  SizeFields sizes(config);
  AttentionSizes heads = attention_sizes(sizes, config, {.head_dim = 64});
  heads.qkv_bias = heads.output_bias = config.boolean_or({"attention_bias"}, true);
  DecoderParts parts = common_parts(sizes, config, heads.hidden);
  require_no_codes(parts, config);
  parts.vllm.replaced = {{"model.embed_tokens.", "model.embedding."}, {"self_attn.", "attn."}};
  const InterleavedExpertSizes experts{heads.hidden, sizes.integer({"intermediate_size"}),
                                       sizes.integer({"num_local_experts", "num_experts"})};
  const auto router = [&](const std::string& kind, Shape shape) {
    const std::string name = "mlp.router." + kind;
    return std::make_shared<Replicated>(Names{name, name, name}, shape);
  };
  const Names sinks{"self_attn.sinks", "self_attn.sinks", "self_attention.core_attention.softmax_offset"};
  const Names stacked{"mlp.experts", "mlp.experts", "mlp.experts"};
  parts.kinds = {{input_norm(heads.hidden), attention(heads),
                  std::make_shared<HeadVector>(sinks, heads.heads, 1), experts_norm(heads.hidden),
                  router("weight", {experts.experts, heads.hidden}), router("bias", {experts.experts}),
                  std::make_shared<InterleavedExperts>(stacked, experts)}};
  return decoder(std::move(parts), sizes);
}

}  // namespace weightcast
