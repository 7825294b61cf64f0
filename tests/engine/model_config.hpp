#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace weightcast::engine {

/// What the forward pass needs of a Qwen3-MoE `config.json`.
struct ModelConfig {
  std::int64_t layers = 0;
  std::int64_t hidden = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t vocab = 0;
  std::int64_t experts = 0;
  std::int64_t experts_per_token = 0;
  std::int64_t expert_width = 0;  ///< inner size of one expert
  std::int64_t dense_width = 0;   ///< inner size of the MLP of a layer without experts
  double rope_theta = 0;
  /// Whether the rotary embedding's frequencies are rounded to bfloat16, as happens to a model that was
  /// converted to bfloat16 as a whole, buffers included, and then computed in float32. The references in
  /// tests/data were made that way: with rounded frequencies this engine meets them within 1e-6 of the
  /// greatest logit, without within 5e-4, the difference growing with the position. Set when the config's
  /// dtype is bfloat16.
  bool bf16_frequencies = false;
  double norm_epsilon = 0;
  bool normalize_top_k = false;
  bool attention_bias = false;
  bool tied_embeddings = false;
  std::vector<bool> sparse;              ///< for each layer, whether it has experts
  std::vector<std::int64_t> end_tokens;  ///< generation stops after one of these
};

/// Reads the text of a `config.json`, as transformers 4 or 5 writes it. Throws InputError naming the key that
/// is missing or asks for something this forward pass does not compute.
ModelConfig parse_model_config(const std::string& text);

}  // namespace weightcast::engine
