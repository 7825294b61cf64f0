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

double rope_theta(const Json& config) {
  const auto parameters = config.find("rope_parameters");  // transformers 5
  const Json& rope = parameters != config.end() && parameters->is_object() ? *parameters : config;
  if (optional_value<std::string>(rope, "rope_type", "default") != "default" ||
      !optional_value(config, "rope_scaling", Json()).is_null()) {
    throw InputError("config: only the default rotary embedding is computed, without scaling");
  }
  return rope.at("rope_theta").get<double>();
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

ModelConfig parse(const Json& config) {
  const auto family = config.at("model_type").get<std::string>();
  if (family != "qwen3_moe") throw InputError(fmt::format("config: model_type {} is not qwen3_moe", family));
  if (optional_value<std::string>(config, "hidden_act", "silu") != "silu") {
    throw InputError("config: hidden_act must be silu");
  }
  if (optional_value(config, "use_sliding_window", false)) {
    throw InputError("config: use_sliding_window is not computed");
  }
  ModelConfig model;
  model.layers = positive(config, "num_hidden_layers");
  model.hidden = positive(config, "hidden_size");
  model.heads = positive(config, "num_attention_heads");
  model.kv_heads = positive(config, "num_key_value_heads");
  model.head_dim = optional_value<std::int64_t>(config, "head_dim", model.hidden / model.heads);
  model.vocab = positive(config, "vocab_size");
  model.experts =
      positive(config, config.contains("num_local_experts") ? "num_local_experts" : "num_experts");
  model.experts_per_token = positive(config, "num_experts_per_tok");
  model.expert_width = positive(config, "moe_intermediate_size");
  model.dense_width = positive(config, "intermediate_size");
  model.rope_theta = rope_theta(config);
  const auto dtype = optional_value<std::string>(config, "torch_dtype", "float32");  // transformers 4
  model.bf16_frequencies = optional_value(config, "dtype", dtype) == "bfloat16";
  model.norm_epsilon = config.at("rms_norm_eps").get<double>();
  model.normalize_top_k = optional_value(config, "norm_topk_prob", false);
  model.attention_bias = optional_value(config, "attention_bias", false);
  model.tied_embeddings = optional_value(config, "tie_word_embeddings", false);
  model.sparse = sparse_layers(config, model.layers);
  model.end_tokens = end_tokens(config);
  if (model.head_dim <= 0 || model.head_dim % 2 != 0) {
    throw InputError(fmt::format("config: head_dim is {}, must be positive and even", model.head_dim));
  }
  if (model.heads % model.kv_heads != 0) {
    throw InputError("config: num_key_value_heads does not divide num_attention_heads");
  }
  if (model.experts_per_token > model.experts) {
    throw InputError("config: num_experts_per_tok exceeds the number of experts");
  }
  return model;
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
