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
  const std::string_view leaf = leaf_of(stored_name);
  return is_one_of(leaf, kScales) ||
         (is_one_of(module_of(stored_name), kProjections) && is_one_of(leaf, kOutputs));
}

bool is_activation_scale(std::string_view stored_name) {
  static constexpr std::string_view kScales[] = {"input_scale", "input_scale_inv"};
  return is_one_of(leaf_of(stored_name), kScales);
}

}  // namespace weightcast
