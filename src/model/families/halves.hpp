#pragma once

#include <cstdint>

#include "model/families/common.hpp"

namespace weightcast {

// What stands behind the attention of a layer, and how the two halves become one.

/// What models of DeepSeek's kind have behind the attention: a dense MLP, or the norm, the router with its
/// correction bias where there is one, routed experts and shared ones.
LayerBlocks dense_half(SizeFields& sizes, std::int64_t hidden);
struct SparseHalf {
  ExpertSizes experts;
  std::int64_t shared = 0;  ///< the inner size of the shared experts together; 0: there are none
  Replicated::Type router = Replicated::Type::kModel;
  bool bias = true;
};
LayerBlocks sparse_half(const SparseHalf& half);
/// Its sizes by DeepSeek's names: `n_routed_experts`, `moe_intermediate_size`, `n_shared_experts`.
SparseHalf sparse_sizes(SizeFields& sizes, const ModelConfig& config, std::int64_t hidden);

/// What Qwen's models with a shared expert have there: the norm, the router, routed experts, and one that all
/// tokens use behind a gate of its own.
LayerBlocks gated_sparse_half(SizeFields& sizes, const ModelConfig& config, std::int64_t hidden);

/// The blocks of a layer's two halves.
LayerBlocks joined(LayerBlocks first, const LayerBlocks& second);

}  // namespace weightcast
