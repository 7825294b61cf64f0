#include <utility>

#include "model/families/common.hpp"
#include "model/families/families.hpp"
#include "model/families/halves.hpp"
#include "model/families/layer_kinds.hpp"

namespace weightcast {

/// Qwen1.5-MoE and Qwen2-MoE: Qwen2's attention; beside routed experts one that all tokens use, behind a gate
/// of its own.
std::unique_ptr<Family> make_qwen2_moe(const ModelConfig& config) {
  SizeFields sizes(config);
  AttentionSizes heads = attention_sizes(sizes, config);
  heads.qkv_bias = config.boolean_or({"qkv_bias"}, true);
  DecoderParts parts = common_parts(sizes, config, heads.hidden);
  const LayerBlocks first{input_norm(heads.hidden), attention(heads)};
  mix_layers(parts, joined(first, gated_sparse_half(sizes, config, heads.hidden)), dense_by_step(config),
             [&] { return joined(first, dense_half(sizes, heads.hidden)); });
  return decoder(std::move(parts), sizes);
}

}  // namespace weightcast
