#pragma once

#include <cstdint>
#include <functional>

#include "model/blocks/gated_delta_net.hpp"
#include "model/families/common.hpp"

namespace weightcast {

/// What Qwen3-Next and Qwen3.5 have in common: layers of linear attention by the gated delta rule, and some
/// of full attention with a gate.
struct HybridAttention {
  std::function<bool(std::int64_t layer)> is_full;
  LayerBlocks full;
  LayerBlocks linear;
};

/// `grouped` as of GatedDeltaSizes. Reads `layer_types` or `full_attention_interval`.
HybridAttention hybrid_attention(SizeFields& sizes, const ModelConfig& config, const DecoderParts& parts,
                                 bool grouped);

}  // namespace weightcast
