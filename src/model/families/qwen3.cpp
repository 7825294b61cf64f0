#include <algorithm>
#include <string>
#include <unordered_set>
#include <vector>

#include "model/blocks/replicated.hpp"
#include "model/families/common.hpp"
#include "model/families/families.hpp"

namespace weightcast {

namespace {

/// The norm that all heads of a projection, `q` or `k`, share.
BlockPtr head_norm(const std::string& of, std::int64_t head_dim) {
  const std::string name = "self_attn." + of + "_norm.weight";
  return std::make_shared<Replicated>(Names{name, name, "self_attention." + of + "_layernorm.weight"},
                                      Shape{head_dim});
}

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
  layer.push_back(gated_mlp(attention.hidden, sizes.integer({"intermediate_size"})));
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
  const std::int64_t step = config.integer_or({"decoder_sparse_step"}, 1);
  const std::vector<std::int64_t> listed = config.integers_or_empty({"mlp_only_layers"});
  const std::unordered_set<std::int64_t> dense_layers(listed.begin(), listed.end());
  const auto is_dense = [step, dense_layers](std::int64_t layer) {
    return (layer + 1) % step != 0 || dense_layers.contains(layer);
  };

  LayerBlocks sparse = attention_blocks(attention);
  LayerBlocks dense = sparse;
  sparse.push_back(experts_norm(attention.hidden));
  sparse.push_back(router(experts.experts, attention.hidden));
  sparse.push_back(routed_experts(experts));
  parts.kinds = {sparse};
  std::int64_t first_dense = 0;
  while (first_dense < parts.layers && !is_dense(first_dense)) ++first_dense;
  if (first_dense < parts.layers) {
    dense.push_back(mlp_norm(attention.hidden));
    dense.push_back(gated_mlp(attention.hidden, sizes.integer({"intermediate_size"})));
    parts.kinds.push_back(dense);
    parts.kind_of = [is_dense](std::int64_t layer) -> std::size_t { return is_dense(layer) ? 1 : 0; };
  }
  return decoder(std::move(parts), sizes);
}

}  // namespace weightcast
