#include "model/families/common.hpp"
#include "model/families/families.hpp"

namespace weightcast {

/// Qwen2 and Qwen2.5: biases of q, k and v and no others.
std::unique_ptr<Family> make_qwen2(const ModelConfig& config) {
  SizeFields sizes(config);
  AttentionSizes heads = attention_sizes(sizes, config);
  heads.qkv_bias = true;
  DecoderParts parts = common_parts(sizes, config, heads.hidden);
  parts.kinds = {{input_norm(heads.hidden), attention(heads), mlp_norm(heads.hidden),
                  gated_mlp({heads.hidden, sizes.integer({"intermediate_size"})})}};
  return decoder(std::move(parts), sizes);
}

}  // namespace weightcast
