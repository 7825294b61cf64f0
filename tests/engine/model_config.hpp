#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace weightcast::engine {

enum class AttentionKind : std::uint8_t {
  kGrouped,  ///< query heads that share key/value heads
  kLatent,   ///< DeepSeek's, through a compressed state of each token
  kDelta,    ///< linear attention by the gated delta rule
};

/// DeepSeek's attention.
struct LatentSizes {
  std::int64_t query_rank = 0;  ///< 0: queries are not compressed
  std::int64_t kv_rank = 0;
  std::int64_t nope_dim = 0;  ///< of a query's elements that do not turn with the position
  std::int64_t rope_dim = 0;
  std::int64_t value_dim = 0;
  double scale = 1;  ///< of the products of queries and keys, beside what their size makes of them
};

/// Linear attention.
struct DeltaSizes {
  std::int64_t key_heads = 0;
  std::int64_t value_heads = 0;
  std::int64_t key_dim = 0;
  std::int64_t value_dim = 0;
  std::int64_t kernel = 0;
  bool by_key_head = false;  ///< rows of the input projections are grouped by key head (Qwen3-Next)
};

/// YaRN: a rotary embedding that was stretched to longer texts than those that a model learned from.
struct Yarn {
  double factor = 1;  ///< of the lengths; 1: not stretched
  double learned_positions = 0;
  double fast_turns = 32;   ///< pairs that turn so often within those positions stay as they are
  double slow_turns = 1;    ///< and those that turn less often are slowed by the factor
  bool whole_pairs = true;  ///< the borders between them are rounded to whole pairs
  double scale = 1;         ///< of what was turned
};

/// How a router chooses a token's experts and weighs them.
struct RouterRule {
  bool sigmoid = false;          ///< of each score, in place of the softmax over all
  bool correction_bias = false;  ///< added to scores for the choice alone
  std::int64_t groups = 1;
  std::int64_t chosen_groups = 1;  ///< only of these experts are chosen
  bool normalize = false;          ///< to a sum of 1
  float scale = 1;
};

/// What the forward pass needs of a `config.json` of Qwen3-MoE, Qwen3-Next, Qwen3.5, DeepSeek-V3 or gpt-oss.
struct ModelConfig {
  std::int64_t layers = 0;
  std::int64_t hidden = 0;
  std::int64_t vocab = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  bool attention_bias = false;
  bool head_norms = true;        ///< of queries and keys
  bool attention_sinks = false;  ///< each head may also look at nothing, as much as its sink says
  bool attention_gate = false;   ///< each head has a gate for what it has seen
  std::string attention_module = "self_attn.";  ///< of the engine's names of grouped attention; may be empty
  LatentSizes latent;
  DeltaSizes delta;
  std::int64_t experts = 0;
  std::int64_t experts_per_token = 0;
  std::int64_t expert_width = 0;  ///< inner size of one expert
  RouterRule router;
  std::int64_t shared_width = 0;  ///< inner size of the MLP that all tokens pass beside experts; 0: none
  std::string shared_module;      ///< its name
  bool shared_gate = false;       ///< a gate says how much of it counts
  std::int64_t dense_width = 0;   ///< inner size of the MLP of a layer without experts
  double rope_theta = 0;
  std::int64_t rotary_dim = 0;  ///< elements of a head that turn with the position
  Yarn yarn;
  bool rotary_neighbours = false;  ///< those turn in pairs of neighbours (DeepSeek)
  /// Whether the rotary embedding's frequencies are rounded to bfloat16, as happens to a model that was
  /// converted to bfloat16 as a whole, buffers included, and then computed in float32. The references of
  /// python-coder-qwen3-moe were made that way: with rounded frequencies this engine meets them within 1e-6
  /// of the greatest logit, without within 5e-4, the difference growing with the position. Set when the
  /// config's dtype is bfloat16; a reference of a model that was read in float32 needs it unset.
  bool bf16_frequencies = false;
  double norm_epsilon = 0;
  bool norms_add_one = false;  ///< a norm multiplies with 1 + what is stored
  bool tied_embeddings = false;
  std::vector<AttentionKind> attention;  ///< of each layer
  std::vector<std::int64_t> window;      ///< for each layer, how many tokens are seen; 0, or none: all
  /// Experts are gpt-oss's: gate and up in turn, biases, and a gate that saturates at this; 0: they are not.
  double interleaved_limit = 0;
  std::vector<bool> sparse;              ///< for each layer, whether it has experts
  std::vector<std::int64_t> end_tokens;  ///< generation stops after one of these
};

/// Reads the text of a `config.json`, as transformers 4 or 5 writes it. Throws InputError naming the key that
/// is missing or asks for something this forward pass does not compute.
ModelConfig parse_model_config(const std::string& text);

}  // namespace weightcast::engine
