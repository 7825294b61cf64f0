#include "engine/model_config.hpp"

#include <fmt/format.h>

#include <algorithm>
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

/// How heads of `dim` elements turn with the position.
void read_rope(const Json& config, std::int64_t dim, ModelConfig& model) {
  const auto parameters = config.find("rope_parameters");  // transformers 5
  const Json& rope = parameters != config.end() && parameters->is_object() ? *parameters : config;
  if (optional_value<std::string>(rope, "rope_type", "default") != "default" ||
      !optional_value(config, "rope_scaling", Json()).is_null()) {
    throw InputError("config: only the default rotary embedding is computed, without scaling");
  }
  model.rope_theta = rope.at("rope_theta").get<double>();
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

ModelConfig parse(const Json& config) {
  const auto family = config.at("model_type").get<std::string>();
  if (family == "qwen3_moe") return qwen3_moe(config);
  if (family == "qwen3_next" || family == "qwen3_5_text" || family == "qwen3_5_moe_text") {
    return hybrid(config, family);
  }
  if (family == "deepseek_v3") return deepseek_v3(config);
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
