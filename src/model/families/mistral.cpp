#include <utility>

#include "model/families/common.hpp"
#include "model/families/families.hpp"

namespace weightcast {

/// Mistral: no biases; a head may be wider or narrower than its part of the hidden size.
std::unique_ptr<Family> make_mistral(const ModelConfig& config) {
  SizeFields sizes(config);
  const AttentionSizes heads = attention_sizes(sizes, config);
  DecoderParts parts = common_parts(sizes, config, heads.hidden);
  parts.kinds = {{input_norm(heads.hidden), attention(heads), mlp_norm(heads.hidden),
                  gated_mlp({heads.hidden, sizes.integer({"intermediate_size"})})}};
  return decoder(std::move(parts), sizes);
}

}  // namespace weightcast
