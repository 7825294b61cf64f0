#include "engine/model_config.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.hpp"

namespace weightcast::engine {
namespace {

using Json = nlohmann::json;

std::int64_t positive(const Json& config, const char* key) {
  const auto value = config.at(key).get<std::int64_t>();
  if (value <= 0) throw InputError(fmt::format("config: {} is {}, must be positive", key, value));
  return value;
}

/// A key that may be absent or null.
template <typename T>
T optional_value(const Json& config, const char* key, T fallback) {
  const auto found = config.find(key);
  return found == config.end() || found->is_null() ? fallback : found->get<T>();
}

/// What a config says of its rotary embedding's stretching: the whole of `rope_parameters` (transformers 5),
/// or `rope_scaling`.
Json stretching(const Json& config) {
  const auto parameters = config.find("rope_parameters");
  if (parameters != config.end() && parameters->is_object()) return *parameters;
  const Json scaling = optional_value(config, "rope_scaling", Json());
  return scaling.is_object() ? scaling : Json::object();
}

/// By how much YaRN scales what it has stretched by `factor`.
double growth(double factor, double slope) {
  return factor <= 1 ? 1.0 : 0.1 * slope * std::log(factor) + 1.0;
}

Yarn read_yarn(const Json& config, const Json& rope) {
  Yarn yarn;
  yarn.factor = rope.at("factor").get<double>();
  yarn.learned_positions = optional_value(rope, "original_max_position_embeddings",
                                          optional_value(config, "max_position_embeddings", 0.0));
  yarn.fast_turns = optional_value(rope, "beta_fast", 32.0);
  yarn.slow_turns = optional_value(rope, "beta_slow", 1.0);
  yarn.whole_pairs = optional_value(rope, "truncate", true);
  if (yarn.factor < 1 || yarn.learned_positions < 1) throw InputError("config: YaRN stretches nothing");
  const double slope = optional_value(rope, "mscale", 0.0);
  const double slope_of_all = optional_value(rope, "mscale_all_dim", 0.0);
  const double default_scale = slope != 0 && slope_of_all != 0
                                   ? growth(yarn.factor, slope) / growth(yarn.factor, slope_of_all)
                                   : growth(yarn.factor, 1);
  yarn.scale = optional_value(rope, "attention_factor", default_scale);
  return yarn;
}

/// How heads of `dim` elements turn with the position.
void read_rope(const Json& config, std::int64_t dim, ModelConfig& model) {
  const Json rope = stretching(config);
  const auto old_name = optional_value<std::string>(rope, "type", "default");
  const auto type = optional_value(rope, "rope_type", old_name);
  if (type == "yarn") {
    model.yarn = read_yarn(config, rope);
  } else if (type != "default") {
    throw InputError(fmt::format("config: the rotary embedding {} is not computed", type));
  }
  model.rope_theta = (rope.contains("rope_theta") ? rope : config).at("rope_theta").get<double>();
  const auto part = optional_value(rope, "partial_rotary_factor", 1.0);
  model.rotary_dim = static_cast<std::int64_t>(part * static_cast<double>(dim));
  if (model.rotary_dim <= 0 || model.rotary_dim % 2 != 0) {
    throw InputError(
        fmt::format("config: {} elements of a head turn, must be positive and even", model.rotary_dim));
  }
  const auto dtype = optional_value<std::string>(config, "torch_dtype", "float32");  // transformers 4
  model.bf16_frequencies = optional_value(config, "dtype", dtype) == "bfloat16";
}

std::vector<bool> sparse_layers(const Json& config, std::int64_t layers) {
  const auto step = optional_value<std::int64_t>(config, "decoder_sparse_step", 1);
  const auto dense = optional_value<std::vector<std::int64_t>>(config, "mlp_only_layers", {});
  if (step <= 0) throw InputError(fmt::format("config: decoder_sparse_step is {}, must be positive", step));
  std::vector<bool> sparse;
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    sparse.push_back(std::ranges::find(dense, layer) == dense.end() && (layer + 1) % step == 0);
  }
  return sparse;
}

std::vector<std::int64_t> end_tokens(const Json& config) {
  const auto found = config.find("eos_token_id");
  if (found == config.end() || found->is_null()) return {};
  if (found->is_array()) return found->get<std::vector<std::int64_t>>();
  return {found->get<std::int64_t>()};
}

/// What all families have.
ModelConfig common(const Json& config) {
  if (optional_value<std::string>(config, "hidden_act", "silu") != "silu") {
    throw InputError("config: hidden_act must be silu");
  }
  ModelConfig model;
  model.layers = positive(config, "num_hidden_layers");
  model.hidden = positive(config, "hidden_size");
  model.vocab = positive(config, "vocab_size");
  model.heads = positive(config, "num_attention_heads");
  model.attention_bias = optional_value(config, "attention_bias", false);
  model.norm_epsilon = config.at("rms_norm_eps").get<double>();
  model.tied_embeddings = optional_value(config, "tie_word_embeddings", false);
  model.attention.assign(static_cast<std::size_t>(model.layers), AttentionKind::kGrouped);
  model.sparse.assign(static_cast<std::size_t>(model.layers), false);
  model.end_tokens = end_tokens(config);
  return model;
}

void read_grouped_attention(const Json& config, ModelConfig& model) {
  if (optional_value(config, "use_sliding_window", false)) {
    throw InputError("config: use_sliding_window is not computed");
  }
  model.kv_heads = positive(config, "num_key_value_heads");
  model.head_dim = optional_value<std::int64_t>(config, "head_dim", model.hidden / model.heads);
  if (model.head_dim <= 0) {
    throw InputError(fmt::format("config: head_dim is {}, must be positive", model.head_dim));
  }
  if (model.heads % model.kv_heads != 0) {
    throw InputError("config: num_key_value_heads does not divide num_attention_heads");
  }
  read_rope(config, model.head_dim, model);
}

void read_experts(const Json& config, const char* count, ModelConfig& model) {
  model.experts = positive(config, count);
  model.experts_per_token = positive(config, "num_experts_per_tok");
  model.expert_width = positive(config, "moe_intermediate_size");
  if (model.experts_per_token > model.experts) {
    throw InputError("config: num_experts_per_tok exceeds the number of experts");
  }
}

ModelConfig qwen3_moe(const Json& config) {
  ModelConfig model = common(config);
  read_grouped_attention(config, model);
  read_experts(config, config.contains("num_local_experts") ? "num_local_experts" : "num_experts", model);
  model.router.normalize = optional_value(config, "norm_topk_prob", false);
  model.sparse = sparse_layers(config, model.layers);
  model.dense_width = positive(config, "intermediate_size");
  return model;
}

/// Qwen3-Next, and Qwen3.5 with experts or without.
ModelConfig hybrid(const Json& config, const std::string& family) {
  ModelConfig model = common(config);
  read_grouped_attention(config, model);
  model.norms_add_one = true;
  model.attention_gate = true;
  model.attention_module = "";
  model.delta = {positive(config, "linear_num_key_heads"),   positive(config, "linear_num_value_heads"),
                 positive(config, "linear_key_head_dim"),    positive(config, "linear_value_head_dim"),
                 positive(config, "linear_conv_kernel_dim"), family == "qwen3_next"};
  const auto types = config.at("layer_types").get<std::vector<std::string>>();
  if (types.size() != model.attention.size()) throw InputError("config: layer_types are not of all layers");
  for (std::size_t layer = 0; layer < types.size(); ++layer) {
    if (types[layer] == "linear_attention") model.attention[layer] = AttentionKind::kDelta;
  }
  if (family != "qwen3_5_text") {
    read_experts(config, "num_experts", model);
    model.sparse = sparse_layers(config, model.layers);
    model.router.normalize = family != "qwen3_next" || optional_value(config, "norm_topk_prob", false);
    model.shared_width = positive(config, "shared_expert_intermediate_size");
    model.shared_module = "shared_expert";
    model.shared_gate = true;
  }
  const bool has_dense = std::ranges::find(model.sparse, false) != model.sparse.end();
  if (has_dense) model.dense_width = positive(config, "intermediate_size");
  return model;
}

ModelConfig deepseek_v3(const Json& config) {
  ModelConfig model = common(config);
  if (model.attention_bias) throw InputError("config: biases of latent attention are not computed");
  model.latent = {optional_value<std::int64_t>(config, "q_lora_rank", 0), positive(config, "kv_lora_rank"),
                  positive(config, "qk_nope_head_dim"), positive(config, "qk_rope_head_dim"),
                  positive(config, "v_head_dim")};
  model.rotary_neighbours = optional_value(config, "rope_interleave", true);
  read_rope(config, model.latent.rope_dim, model);
  if (const double slope = optional_value(stretching(config), "mscale_all_dim", 0.0); slope != 0) {
    model.latent.scale = growth(model.yarn.factor, slope) * growth(model.yarn.factor, slope);
  }
  std::ranges::fill(model.attention, AttentionKind::kLatent);
  read_experts(config, "n_routed_experts", model);
  model.router = {.sigmoid = true,
                  .correction_bias = true,
                  .groups = positive(config, "n_group"),
                  .chosen_groups = positive(config, "topk_group"),
                  .normalize = config.at("norm_topk_prob").get<bool>(),
                  .scale = config.at("routed_scaling_factor").get<float>()};
  if (model.experts % model.router.groups != 0 || model.experts / model.router.groups < 2 ||
      model.router.chosen_groups > model.router.groups) {
    throw InputError("config: n_group and topk_group do not fit the experts");
  }
  model.shared_width = positive(config, "n_shared_experts") * model.expert_width;
  model.shared_module = "shared_experts";
  const auto dense = optional_value<std::int64_t>(config, "first_k_dense_replace", 0);
  for (std::int64_t layer = dense; layer < model.layers; ++layer) {
    model.sparse[static_cast<std::size_t>(layer)] = true;
  }
  model.dense_width = positive(config, "intermediate_size");
  return model;
}

ModelConfig gpt_oss(const Json& config) {
  ModelConfig model = common(config);
  model.attention_bias = optional_value(config, "attention_bias", true);
  read_grouped_attention(config, model);
  model.head_norms = false;
  model.attention_sinks = true;
  const auto types = config.at("layer_types").get<std::vector<std::string>>();
  if (types.size() != model.attention.size()) throw InputError("config: layer_types are not of all layers");
  for (const std::string& type : types) {
    model.window.push_back(type == "sliding_attention" ? positive(config, "sliding_window") : 0);
  }
  model.experts = positive(config, "num_local_experts");
  model.experts_per_token = positive(config, "num_experts_per_tok");
  model.expert_width = positive(config, "intermediate_size");
  model.interleaved_limit = optional_value(config, "swiglu_limit", 7.0);
  model.sparse.assign(model.sparse.size(), true);
  return model;
}

ModelConfig parse(const Json& config) {
  const auto family = config.at("model_type").get<std::string>();
  if (family == "qwen3_moe") return qwen3_moe(config);
  if (family == "qwen3_next" || family == "qwen3_5_text" || family == "qwen3_5_moe_text") {
    return hybrid(config, family);
  }
  if (family == "deepseek_v3") return deepseek_v3(config);
  if (family == "gpt_oss") return gpt_oss(config);
  throw InputError(fmt::format("config: models of type {} are not computed", family));
}

}  // namespace

ModelConfig parse_model_config(const std::string& text) {
  try {
    return parse(Json::parse(text));
  } catch (const Json::exception& error) {
    throw InputError(fmt::format("config: {}", error.what()));
  }
}

}  // namespace weightcast::engine
