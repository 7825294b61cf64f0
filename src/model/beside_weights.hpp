#pragma once

#include <string>
#include <string_view>

namespace weightcast {

/// Tensors of checkpoints that are no weights, known by the names that libraries give them. An engine takes
/// none of them from an update: it computes tables itself, and keeps the scales that it loaded.

/// A table of rotary positions: `rotary_emb.inv_freq`, `cos_cached`, `cos_sin_cache`, `freqs_cis`, …
bool is_rotary_table(std::string_view stored_name);

/// A scale of the cache of keys and values or of what attention computes: `attn.k_scale`,
/// `k_proj.output_scale`, `kv_cache_scale`, …
bool is_cache_scale(std::string_view stored_name);

/// What modules keep for themselves: Transformer Engine's extra state, the ranges that fake quantisers have
/// seen (`weight_quantizer._amax`), masks and numbers of positions.
bool is_state_beside_weights(std::string_view stored_name);

/// What a tensor is that a training run keeps and no model has (an optimizer's state, a moving average, a
/// value head, the number of a step), as what follows its name in a sentence; empty for any other name.
std::string training_state(std::string_view stored_name);

/// What a draft layer repeats of the model, by the ends of the names: the embedding, and this head.
constexpr std::string_view kDraftsHead = ".shared_head.head.weight";
bool is_drafts_copy(std::string_view stored_name);

/// A scale of what goes into a quantised layer: `input_scale`.
bool is_activation_scale(std::string_view stored_name);

}  // namespace weightcast
