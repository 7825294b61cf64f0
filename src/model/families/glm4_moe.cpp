#include "model/families/common.hpp"
#include "model/families/drafts.hpp"
#include "model/families/families.hpp"
#include "model/families/halves.hpp"
#include "model/families/layer_kinds.hpp"

namespace weightcast {

/// GLM-4.5, 4.6 and 4.7: dense layers first, then routed experts, shared ones, and a bias by which experts
/// are chosen. vLLM keeps the router in float32.
std::unique_ptr<Family> make_glm4_moe(const ModelConfig& config) {
  SizeFields sizes(config);
  AttentionSizes heads = attention_sizes(sizes, config);
  heads.qkv_bias = config.boolean_or({"attention_bias"}, false);
  DecoderParts parts = common_parts(sizes, config, heads.hidden);
  parts.draft_layers = config.count_or({"num_nextn_predict_layers", "num_mtp_layers"}, 0);
  LayerBlocks first{input_norm(heads.hidden), attention(heads)};
  if (config.boolean_or({"use_qk_norm"}, false)) {
    first.push_back(head_norm("q", heads.head_dim));
    first.push_back(head_norm("k", heads.head_dim));
  }
  SparseHalf sparse = sparse_sizes(sizes, config, heads.hidden);
  sparse.router = Replicated::Type::kWidenedByVllm;
  mix_layers(parts, joined(first, sparse_half(sparse)), dense_at_first(config, parts.layers, 1),
             [&] { return joined(first, dense_half(sizes, heads.hidden)); });
  parts.drafts = nextn_drafts(config, parts, heads.hidden, joined(first, sparse_half(sparse)));
  return decoder(std::move(parts), sizes);
}

}  // namespace weightcast
