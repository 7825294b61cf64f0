#include "model/families/hybrid.hpp"

#include <fmt/format.h>

#include <string>
#include <vector>

#include "core/error.hpp"

namespace weightcast {

namespace {

std::function<bool(std::int64_t)> full_layers(const ModelConfig& config, std::int64_t layers) {
  const auto types =
      config.layer_words_or_empty("layer_types", layers, {"linear_attention", "full_attention"});
  if (!types.empty()) {
    return [types](std::int64_t layer) { return types[static_cast<std::size_t>(layer)] == "full_attention"; };
  }
  const std::int64_t interval = config.integer_or({"full_attention_interval"}, 4);
  return [interval](std::int64_t layer) { return (layer + 1) % interval == 0; };
}

}  // namespace

HybridAttention hybrid_attention(SizeFields& sizes, const ModelConfig& config, const DecoderParts& parts,
                                 bool grouped) {
  AttentionSizes heads = attention_sizes(sizes, config, {.head_dim = 256});
  heads.gated = true;
  heads.qkv_bias = heads.output_bias = config.boolean_or({"attention_bias"}, false);
  GatedDeltaSizes delta;
  delta.hidden = heads.hidden;
  delta.key_heads = sizes.integer({"linear_num_key_heads"});
  delta.value_heads = sizes.integer({"linear_num_value_heads"});
  delta.key_dim = sizes.integer({"linear_key_head_dim"});
  delta.value_dim = sizes.integer({"linear_value_head_dim"});
  delta.kernel = sizes.integer({"linear_conv_kernel_dim"});
  delta.grouped = grouped;
  if (delta.value_heads % delta.key_heads != 0) {
    throw InputError(
        fmt::format("{}: linear_num_value_heads {} is no multiple of linear_num_key_heads {}; is it the own "
                    "config.json of {}?",
                    config.origin(), delta.value_heads, delta.key_heads, config.architecture()));
  }
  HybridAttention attention_of;
  attention_of.is_full = full_layers(config, parts.layers);
  attention_of.full = {input_norm(heads.hidden), attention(heads), head_norm("q", heads.head_dim),
                       head_norm("k", heads.head_dim)};
  // Fused into the projection behind it, or alone before the attention.
  const Names norm{"input_layernorm.weight",
                   "input_layernorm.weight",
                   "self_attention.in_proj.layer_norm_weight",
                   {"self_attention.input_layernorm.weight", "input_layernorm.weight",
                    "self_attention.linear_qkv.layer_norm_weight"}};
  attention_of.linear = {
      std::make_shared<Replicated>(norm, Shape{heads.hidden}),
      std::make_shared<GatedDeltaNet>(Names{"linear_attn.", "linear_attn.", "self_attention."}, delta)};
  return attention_of;
}

}  // namespace weightcast
