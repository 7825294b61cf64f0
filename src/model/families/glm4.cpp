#include <utility>

#include "model/families/common.hpp"
#include "model/families/families.hpp"

namespace weightcast {

namespace {

/// A norm behind the attention or the MLP. Megatron-Core itself has none there; the versions of it that train
/// this model call it as Hugging Face does, and have it in the layer or in the module that it stands behind.
BlockPtr norm_behind(const std::string& module, const std::string& name, std::int64_t hidden) {
  return std::make_shared<Replicated>(Names{name, name, name, {module + name}}, Shape{hidden});
}

}  // namespace

/// GLM-4 of one MLP a layer, whose gate and up checkpoints store as one tensor; norms before and behind both
/// halves of a layer.
std::unique_ptr<Family> make_glm4(const ModelConfig& config) {
  SizeFields sizes(config);
  AttentionSizes heads = attention_sizes(sizes, config, {.head_dim = 128});
  heads.qkv_bias = config.boolean_or({"attention_bias"}, true);
  DecoderParts parts = common_parts(sizes, config, heads.hidden);
  parts.kinds = {{input_norm(heads.hidden), attention(heads),
                  norm_behind("self_attention.", "post_self_attn_layernorm.weight", heads.hidden),
                  mlp_norm(heads.hidden),
                  gated_mlp({heads.hidden, sizes.integer({"intermediate_size"}), false, true}),
                  norm_behind("mlp.", "post_mlp_layernorm.weight", heads.hidden)}};
  return decoder(std::move(parts), sizes);
}

}  // namespace weightcast
