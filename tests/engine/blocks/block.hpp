#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "engine/layout.hpp"
#include "engine/loader.hpp"
#include "engine/matrix.hpp"
#include "engine/model_config.hpp"

namespace weightcast::engine {

/// One half of a layer, as a rank holds it: an attention or an MLP.
class Block {
 public:
  virtual ~Block() = default;

  /// From the normalised hidden states [tokens, hidden] of a whole sequence, what this rank adds to the sum
  /// over the ranks, likewise [tokens, hidden].
  virtual Matrix run(const Matrix& input) const = 0;
};

/// What a block is made of: a rank's parameters and the place of its own among them.
struct BlockSite {
  Loader& load;
  const ModelConfig& config;
  const RankLayout& layout;
  std::int64_t number;  ///< of the layer
  std::string layer;    ///< `model.layers.<number>.`
};

/// Query heads that share key/value heads; of Qwen3.5 with a gate for each head.
std::unique_ptr<Block> grouped_attention(const BlockSite& site);

/// DeepSeek's latent attention (MLA).
std::unique_ptr<Block> latent_attention(const BlockSite& site);

/// Qwen3-Next's and Qwen3.5's linear attention by the gated delta rule.
std::unique_ptr<Block> gated_delta_net(const BlockSite& site);

/// The gated MLP of a layer without experts.
std::unique_ptr<Block> dense_mlp(const BlockSite& site);

/// Experts that a router chooses, and what all tokens pass beside them.
std::unique_ptr<Block> routed_experts(const BlockSite& site);

/// gpt-oss's experts, whose rows of gate and up take turns.
std::unique_ptr<Block> interleaved_experts(const BlockSite& site);

}  // namespace weightcast::engine
