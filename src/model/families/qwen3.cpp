#include <utility>

#include "model/families/common.hpp"
#include "model/families/families.hpp"
#include "model/families/halves.hpp"
#include "model/families/layer_kinds.hpp"

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
  parts.kinds = {joined(attention_blocks(attention), dense_half(sizes, attention.hidden))};
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

  const LayerBlocks first = attention_blocks(attention);
  const LayerBlocks sparse = sparse_half({.experts = experts, .bias = false});
  mix_layers(parts, joined(first, sparse), dense_by_step(config),
             [&] { return joined(first, dense_half(sizes, attention.hidden)); });
  return decoder(std::move(parts), sizes);
}

}  // namespace weightcast
