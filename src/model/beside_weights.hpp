#pragma once

#include <string_view>

namespace weightcast {

/// What checkpoints hold beside weights, by the spellings of the libraries that write it. No engine takes it
/// from an update: it computes such a table itself, and keeps such a scale as it loaded it.

/// A table of rotary positions: `rotary_emb.inv_freq`, `cos_cached`, `cos_sin_cache`, `freqs_cis`, …
bool is_rotary_table(std::string_view stored_name);

/// A scale of the cache of keys and values or of what attention computes: `attn.k_scale`,
/// `k_proj.output_scale`, `kv_cache_scale`, …
bool is_cache_scale(std::string_view stored_name);

/// A scale of what goes into a quantised layer: `input_scale`.
bool is_activation_scale(std::string_view stored_name);

}  // namespace weightcast
