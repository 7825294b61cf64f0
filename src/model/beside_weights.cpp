#include "model/beside_weights.hpp"

#include <algorithm>
#include <span>

namespace weightcast {

namespace {

/// The last part of a name, without the underscores that mark a buffer as private.
std::string_view leaf_of(std::string_view name) {
  name.remove_prefix(name.rfind('.') + 1);  // npos + 1 is 0
  name.remove_prefix(std::min(name.find_first_not_of('_'), name.size()));
  return name;
}

/// The part before the last one; empty where there is none.
std::string_view module_of(std::string_view name) {
  const std::size_t dot = name.rfind('.');
  if (dot == name.npos) return "";
  name.remove_suffix(name.size() - dot);
  name.remove_prefix(name.rfind('.') + 1);
  return name;
}

bool is_one_of(std::string_view text, std::span<const std::string_view> list) {
  return std::find(list.begin(), list.end(), text) != list.end();
}

/// Whether a part of a name, between dots, is what is looked for.
template <typename Wanted>
bool has_part(std::string_view name, Wanted wanted) {
  for (std::size_t start = 0; start <= name.size();) {
    const std::size_t end = std::min(name.find('.', start), name.size());
    if (wanted(name.substr(start, end - start))) return true;
    start = end + 1;
  }
  return false;
}

}  // namespace

bool is_rotary_table(std::string_view stored_name) {
  static constexpr std::string_view kTables[] = {
      "inv_freq",       "original_inv_freq", "long_inv_freq", "short_inv_freq", "cos_cached", "sin_cached",
      "cos_sin_cached", "cos_cache",         "sin_cache",     "cos_sin_cache",  "freqs_cis",  "rope_cache"};
  // Short names, which mean a table in a module for nothing else.
  static constexpr std::string_view kModules[] = {"rotary_emb", "rotary_pos_emb", "rotary_embedding",
                                                  "rotary",     "rope",           "rotary_emb_local"};
  static constexpr std::string_view kShort[] = {"freqs", "freq", "cos", "sin", "cache", "scale"};
  const std::string_view leaf = leaf_of(stored_name);
  return is_one_of(leaf, kTables) || (is_one_of(module_of(stored_name), kModules) && is_one_of(leaf, kShort));
}

bool is_drafts_copy(std::string_view stored_name) {
  return stored_name.ends_with(kDraftsHead) || stored_name.ends_with(".embed_tokens.weight");
}

bool is_cache_scale(std::string_view stored_name) {
  static constexpr std::string_view kScales[] = {"k_scale",           "v_scale",
                                                 "q_scale",           "prob_scale",
                                                 "kv_scale",          "kv_cache_scale",
                                                 "k_scale_inv",       "v_scale_inv",
                                                 "k_cache_scale",     "v_cache_scale",
                                                 "kv_scale_inv",      "k_zero_point",
                                                 "v_zero_point",      "kv_cache_scaling_factor",
                                                 "prob_output_scale", "k_scaling_factor",
                                                 "v_scaling_factor"};
  static constexpr std::string_view kProjections[] = {"q_proj", "k_proj", "v_proj", "qkv_proj"};
  static constexpr std::string_view kOutputs[] = {"output_scale", "output_zero_point"};
  static constexpr std::string_view kCaches[] = {"k_cache", "v_cache", "kv_cache", "key_cache",
                                                 "value_cache"};
  static constexpr std::string_view kOfCaches[] = {"scale", "scale_inv", "zero_point", "scaling_factor"};
  const std::string_view leaf = leaf_of(stored_name);
  return is_one_of(leaf, kScales) ||
         (is_one_of(module_of(stored_name), kProjections) && is_one_of(leaf, kOutputs)) ||
         (is_one_of(module_of(stored_name), kCaches) && is_one_of(leaf, kOfCaches));
}

bool is_state_beside_weights(std::string_view stored_name) {
  static constexpr std::string_view kExtraState = "_extra_state";
  static constexpr std::string_view kMasks[] = {"masked_bias",    "causal_mask",   "attn_mask",
                                                "attention_mask", "position_ids",  "token_type_ids",
                                                "bias_mask",      "rel_pos_index", "relative_position_index"};
  static constexpr std::string_view kAttention[] = {"self_attn", "attn", "attention", "self_attention"};
  const auto extra = [&](std::string_view part) { return part.starts_with(kExtraState); };
  const auto quantizer = [](std::string_view part) {
    return part.ends_with("_quantizer") || part.ends_with("_fake_quant") ||
           part.starts_with("activation_post_process");
  };
  const std::string_view leaf = leaf_of(stored_name);
  // A factor by which weights were divided is no mere observation.
  if (has_part(stored_name, quantizer) && leaf != "pre_quant_scale") return true;
  return has_part(stored_name, extra) || is_one_of(leaf, kMasks) ||
         (leaf == "bias" && is_one_of(module_of(stored_name), kAttention));
}

std::string training_state(std::string_view stored_name) {
  static constexpr std::string_view kValueHeads[] = {"v_head", "value_head", "reward_head", "critic_head",
                                                     "score_head"};
  static constexpr std::string_view kOptimizer[] = {"optimizer",
                                                    "optim",
                                                    "optimizer_state",
                                                    "optimizer_states",
                                                    "exp_avg",
                                                    "exp_avg_sq",
                                                    "max_exp_avg_sq",
                                                    "momentum_buffer",
                                                    "param_groups",
                                                    "master_param",
                                                    "master_params",
                                                    "master_weight",
                                                    "master_weights",
                                                    "fp32_param",
                                                    "main_param",
                                                    "fp32_from_fp16_params",
                                                    "optimizer_state_dict"};
  static constexpr std::string_view kAverages[] = {"ema",         "ema_model",     "model_ema", "ema_params",
                                                   "ema_weights", "shadow_params", "swa_model"};
  static constexpr std::string_view kRun[] = {"global_step",
                                              "global_steps",
                                              "rng_state",
                                              "rng_states",
                                              "rng_tracker_states",
                                              "iteration",
                                              "epoch",
                                              "lr_scheduler",
                                              "scheduler",
                                              "opt_param_scheduler",
                                              "loss_scaler",
                                              "grad_scaler",
                                              "num_floating_point_operations_so_far",
                                              "checkpoint_version"};
  const auto is_part = [&](std::span<const std::string_view> list) {
    return has_part(stored_name, [&](std::string_view part) { return is_one_of(part, list); });
  };
  if (is_part(kValueHeads)) return "belongs to a value head, not to the model";
  if (is_part(kOptimizer)) return "belongs to an optimizer's state, not to the model";
  if (is_part(kAverages)) return "belongs to a moving average of the weights, not to the model";
  if (is_part(kRun)) return "belongs to the state of a training run, not to the model";
  return "";
}

bool is_activation_scale(std::string_view stored_name) {
  static constexpr std::string_view kScales[] = {"input_scale", "input_scale_inv"};
  return is_one_of(leaf_of(stored_name), kScales);
}

}  // namespace weightcast
