#include "model/families/deepseek.hpp"

#include <fmt/format.h>

#include <utility>

#include "core/error.hpp"
#include "model/blocks/indexer.hpp"
#include "model/blocks/latent_attention.hpp"
#include "model/families/drafts.hpp"
#include "model/families/halves.hpp"
#include "model/families/layer_kinds.hpp"

namespace weightcast {

namespace {

/// The norm before latent attention, which trainers never fuse into a linear layer.
BlockPtr norm_before(std::int64_t hidden) {
  return std::make_shared<Replicated>(
      Names{"input_layernorm.weight", "input_layernorm.weight", "input_layernorm.weight"}, Shape{hidden});
}

LatentAttentionSizes latent_sizes(SizeFields& sizes, const ModelConfig& config) {
  LatentAttentionSizes latent;
  latent.hidden = sizes.integer({"hidden_size"});
  latent.heads = sizes.integer({"num_attention_heads"});
  if (!config.is_null({"q_lora_rank"})) latent.query_rank = sizes.integer({"q_lora_rank"});
  latent.kv_rank = sizes.integer({"kv_lora_rank"});
  latent.nope_dim = sizes.integer({"qk_nope_head_dim"});
  latent.rope_dim = sizes.integer({"qk_rope_head_dim"});
  latent.value_dim = sizes.integer({"v_head_dim"});
  for (const char* bias : {"attention_bias", "mlp_bias"}) {
    if (!config.boolean_or({bias}, false)) continue;
    throw InputError(fmt::format("{}: field '{}' is true, but biases of {} are not known; engines have none",
                                 config.origin(), bias, config.architecture()));
  }
  return latent;
}

BlockPtr indexer(SizeFields& sizes, const ModelConfig& config, const LatentAttentionSizes& latent, bool own) {
  if (latent.query_rank == 0) {
    throw InputError(
        fmt::format("{}: field 'q_lora_rank' is null, but the indexers of {} are made of what it "
                    "is the size of; correct it",
                    config.origin(), config.architecture()));
  }
  const IndexerSizes indexer{latent.hidden, latent.query_rank, sizes.integer({"index_n_heads"}),
                             sizes.integer({"index_head_dim"})};
  return std::make_shared<Indexer>(
      Names{"self_attn.indexer.", "self_attn.indexer.", "self_attention.core_attention.indexer."}, indexer,
      own);
}

/// Without the field the bias is there: transformers does not write it.
bool has_correction_bias(const ModelConfig& config) {
  return config.text_or("topk_method", "noaux_tc") == "noaux_tc";
}

}  // namespace

std::unique_ptr<Family> make_deepseek(const ModelConfig& config, const DeepseekTraits& traits) {
  SizeFields sizes(config);
  const LatentAttentionSizes latent = latent_sizes(sizes, config);
  DecoderParts parts = common_parts(sizes, config, latent.hidden);
  parts.draft_layers = config.count_or({"num_nextn_predict_layers", "num_mtp_layers"}, 0);
  parts.vllm.prefix = parts.sglang.prefix = traits.prefix;
  if (!traits.prefix.empty()) parts.in_files = {{"", traits.prefix}};
  parts.left_out = parts.towers = traits.towers;
  parts.unsent = traits.unsent;
  SparseHalf sparse = sparse_sizes(sizes, config, latent.hidden);
  sparse.router = traits.router;
  sparse.bias = has_correction_bias(config);
  const auto is_dense = dense_at_first(config, parts.layers, traits.dense_layers);
  const auto own_indexer = traits.own_indexer;
  constexpr std::size_t kDense = 1;
  constexpr std::size_t kOwnIndexer = 2;
  add_layers(
      parts,
      [=](std::int64_t layer) {
        return (is_dense(layer) ? kDense : 0) + (own_indexer && own_indexer(layer) ? kOwnIndexer : 0);
      },
      [&](std::size_t kind) {
        LayerBlocks first{
            norm_before(latent.hidden),
            std::make_shared<LatentAttention>(Names{"self_attn.", "self_attn.", "self_attention."}, latent)};
        if (own_indexer) first.push_back(indexer(sizes, config, latent, (kind & kOwnIndexer) != 0));
        return joined(std::move(first),
                      (kind & kDense) != 0 ? dense_half(sizes, latent.hidden) : sparse_half(sparse));
      });
  // Draft layers have experts, and an indexer of their own where layers have any.
  LayerBlocks draft{
      norm_before(latent.hidden),
      std::make_shared<LatentAttention>(Names{"self_attn.", "self_attn.", "self_attention."}, latent)};
  if (own_indexer) draft.push_back(indexer(sizes, config, latent, true));
  parts.drafts = nextn_drafts(config, parts, latent.hidden, joined(std::move(draft), sparse_half(sparse)));
  return decoder(std::move(parts), sizes);
}

}  // namespace weightcast
