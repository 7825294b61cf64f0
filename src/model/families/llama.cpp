#include "model/families/common.hpp"
#include "model/families/families.hpp"

namespace weightcast {

/// Llama 1 to 3: biases only where the config has them, of the attention and of the MLP apart.
std::unique_ptr<Family> make_llama(const ModelConfig& config) {
  SizeFields sizes(config);
  AttentionSizes heads = attention_sizes(sizes, config, {.kv_heads = true});
  heads.qkv_bias = heads.output_bias = config.boolean_or({"attention_bias"}, false);
  DecoderParts parts = common_parts(sizes, config, heads.hidden);
  parts.kinds = {{input_norm(heads.hidden), attention(heads), mlp_norm(heads.hidden),
                  gated_mlp({heads.hidden, sizes.integer({"intermediate_size"}),
                             config.boolean_or({"mlp_bias"}, false)})}};
  return decoder(std::move(parts), sizes);
}

}  // namespace weightcast
