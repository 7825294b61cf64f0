#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "model/blocks/decoder.hpp"
#include "model/config.hpp"

namespace weightcast {

// Which layers of a model are of which kind.

/// Which layers are dense where every so many have routed experts: `decoder_sparse_step`, `mlp_only_layers`.
std::function<bool(std::int64_t layer)> dense_by_step(const ModelConfig& config);
/// Which are where the first ones are: `first_k_dense_replace` or, where it is missing, `fallback`; of those
/// behind them every `moe_layer_freq`-th has routed experts. `mlp_layer_types` says the same, layer by layer;
/// throws InputError when it says otherwise.
std::function<bool(std::int64_t layer)> dense_at_first(const ModelConfig& config, std::int64_t layers,
                                                       std::int64_t fallback);

/// Gives the model its layers: each is of a `kind`, a number below 8, and `make` makes the blocks of a kind
/// that occurs, so that sizes of others may be missing.
void add_layers(DecoderParts& parts, const std::function<std::size_t(std::int64_t layer)>& kind,
                const std::function<LayerBlocks(std::size_t kind)>& make);

/// Layers of which some are dense and the others have routed experts.
void mix_layers(DecoderParts& parts, const LayerBlocks& sparse,
                const std::function<bool(std::int64_t)>& is_dense, const std::function<LayerBlocks()>& dense);

}  // namespace weightcast
