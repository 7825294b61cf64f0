#include <utility>

#include "model/families/common.hpp"
#include "model/families/families.hpp"

namespace weightcast {

namespace {

LayerBlocks attention_blocks(const AttentionSizes& sizes) {
  return {input_norm(sizes.hidden), attention(sizes), head_norm("q", sizes.head_dim),
          head_norm("k", sizes.head_dim)};
}

AttentionSizes qwen3_attention(SizeFields& sizes, const ModelConfig& config,
                               const AttentionDefaults& defaults = {}) {
  AttentionSizes attention = attention_sizes(sizes, config, defaults);
  attention.qkv_bias = attention.output_bias = config.boolean_or({"attention_bias"}, false);
  return attention;
}

}  // namespace

std::unique_ptr<Family> make_qwen3(const ModelConfig& config) {
  SizeFields sizes(config);
  const AttentionSizes attention = qwen3_attention(sizes, config, {.head_dim = 128});
  DecoderParts parts = common_parts(sizes, config, attention.hidden);
  LayerBlocks layer = attention_blocks(attention);
  layer.push_back(mlp_norm(attention.hidden));
  layer.push_back(gated_mlp({attention.hidden, sizes.integer({"intermediate_size"})}));
  parts.kinds = {layer};
  return decoder(std::move(parts), sizes);
}

std::unique_ptr<Family> make_qwen3_moe(const ModelConfig& config) {
  SizeFields sizes(config);
  const AttentionSizes attention = qwen3_attention(sizes, config);
  DecoderParts parts = common_parts(sizes, config, attention.hidden);
  ExpertSizes experts;
  experts.hidden = attention.hidden;
  experts.experts = sizes.integer({"num_experts", "num_local_experts"});
  experts.inner = sizes.integer({"moe_intermediate_size"});
  experts.dtype = parts.dtype;

  const LayerBlocks both = attention_blocks(attention);
  LayerBlocks sparse = both;
  sparse.push_back(experts_norm(attention.hidden));
  sparse.push_back(router(experts.experts, attention.hidden));
  sparse.push_back(routed_experts(experts));
  mix_layers(parts, std::move(sparse), dense_by_step(config), [&] {
    LayerBlocks dense = both;
    dense.push_back(mlp_norm(attention.hidden));
    dense.push_back(gated_mlp({attention.hidden, sizes.integer({"intermediate_size"})}));
    return dense;
  });
  return decoder(std::move(parts), sizes);
}

}  // namespace weightcast
