#include <fmt/format.h>

#include <string>

#include "core/error.hpp"
#include "model/blocks/head_vector.hpp"
#include "model/families/common.hpp"
#include "model/families/families.hpp"

namespace weightcast {

namespace {

/// The norm of all heads of `q` or `k` together, which is cut as they are.
BlockPtr norm_of_heads(const std::string& of, std::int64_t heads, std::int64_t head_dim) {
  const std::string name = "self_attn." + of + "_norm.weight";
  return std::make_shared<HeadVector>(Names{name, name, "self_attention." + of + "_layernorm.weight"}, heads,
                                      head_dim);
}

/// `block_sparse_moe` in checkpoints and engines, `mlp` while transformers has it in memory.
BlockPtr sparse_part(const std::string& name, const char* trainer, Shape shape, Replicated::Type type) {
  const std::string stored = "block_sparse_moe." + name;
  return std::make_shared<Replicated>(Names{stored, stored, trainer, {}, "mlp." + name}, shape, type);
}

}  // namespace

/// MiniMax-M2: all layers have routed experts, whose matrices are w1, w2 and w3.
std::unique_ptr<Family> make_minimax_m2(const ModelConfig& config) {
  SizeFields sizes(config);
  const AttentionSizes heads = attention_sizes(sizes, config, {.head_dim = 128});
  if (!config.boolean_or({"use_qk_norm"}, true)) {
    throw InputError(fmt::format(
        "{}: field 'use_qk_norm' is false, but {} without norms of queries and keys is not known; "
        "transformers writes true unless it is told otherwise",
        config.origin(), config.architecture()));
  }
  DecoderParts parts = common_parts(sizes, config, heads.hidden);
  parts.draft_layers = config.count_or({"num_mtp_modules", "num_nextn_predict_layers"}, 0);
  ExpertSizes experts;
  experts.hidden = heads.hidden;
  experts.experts = sizes.integer({"num_local_experts", "num_experts"});
  experts.inner = sizes.integer({"intermediate_size"});
  experts.dtype = parts.dtype;
  experts.gate = "w1";
  experts.up = "w3";
  experts.down = "w2";
  const std::string names = "block_sparse_moe.experts";
  LayerBlocks layer{input_norm(heads.hidden),
                    attention(heads),
                    norm_of_heads("q", heads.heads, heads.head_dim),
                    norm_of_heads("k", heads.kv_heads, heads.head_dim),
                    experts_norm(heads.hidden),
                    sparse_part("gate.weight", "mlp.router.weight", {experts.experts, heads.hidden},
                                Replicated::Type::kWidened)};
  // Without the field the bias is there: transformers always has it.
  if (config.boolean_or({"use_routing_bias"}, true)) {
    layer.push_back(sparse_part("e_score_correction_bias", "mlp.router.expert_bias", {experts.experts},
                                Replicated::Type::kFloat32));
  }
  layer.push_back(
      std::make_shared<RoutedExperts>(Names{names, names, "mlp.experts", {}, "mlp.experts"}, experts));
  parts.kinds = {layer};
  return decoder(std::move(parts), sizes);
}

}  // namespace weightcast
