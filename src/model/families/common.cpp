#include "model/families/common.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "core/error.hpp"
#include "core/text.hpp"

namespace weightcast {

BlockPtr input_norm(std::int64_t hidden) {
  // Fused into the linear layer behind it, or alone before the attention.
  return std::make_shared<Replicated>(
      Names{"input_layernorm.weight",
            "input_layernorm.weight",
            "self_attention.linear_qkv.layer_norm_weight",
            {"input_layernorm.weight", "self_attention.input_layernorm.weight"}},
      Shape{hidden});
}

BlockPtr attention(const AttentionSizes& sizes) {
  return std::make_shared<Attention>(Names{"self_attn.", "self_attn.", "self_attention."}, sizes);
}

BlockPtr mlp_norm(std::int64_t hidden) {
  return std::make_shared<Replicated>(Names{"post_attention_layernorm.weight",
                                            "post_attention_layernorm.weight",
                                            "mlp.linear_fc1.layer_norm_weight",
                                            {"pre_mlp_layernorm.weight"}},
                                      Shape{hidden});
}

BlockPtr experts_norm(std::int64_t hidden) {
  return std::make_shared<Replicated>(
      Names{"post_attention_layernorm.weight", "post_attention_layernorm.weight", "pre_mlp_layernorm.weight"},
      Shape{hidden});
}

BlockPtr head_norm(const std::string& of, std::int64_t head_dim) {
  const std::string name = "self_attn." + of + "_norm.weight";
  return std::make_shared<Replicated>(Names{name, name, "self_attention." + of + "_layernorm.weight"},
                                      Shape{head_dim});
}

BlockPtr gated_mlp(const MlpSizes& sizes) {
  return std::make_shared<GatedMlp>(Names{"mlp.", "mlp.", "mlp."}, sizes);
}

BlockPtr router(std::int64_t experts, std::int64_t hidden, Replicated::Type type) {
  return std::make_shared<Replicated>(Names{"mlp.gate.weight", "mlp.gate.weight", "mlp.router.weight"},
                                      Shape{experts, hidden}, type);
}

BlockPtr correction_bias(std::int64_t experts) {
  const std::string name = "mlp.gate.e_score_correction_bias";
  return std::make_shared<Replicated>(Names{name, name, "mlp.router.expert_bias"}, Shape{experts},
                                      Replicated::Type::kFloat32);
}

BlockPtr routed_experts(const ExpertSizes& sizes) {
  return std::make_shared<RoutedExperts>(Names{"mlp.experts", "mlp.experts", "mlp.experts"}, sizes);
}

BlockPtr shared_experts(const std::string& module, std::int64_t hidden, std::int64_t inner) {
  const std::string name = "mlp." + module + ".";
  return std::make_shared<GatedMlp>(Names{name, name, "mlp.shared_experts."},
                                    MlpSizes{hidden, inner, false, false, true});
}

BlockPtr shared_expert_gate(std::int64_t hidden) {
  const std::string name = "mlp.shared_expert_gate.weight";
  return std::make_shared<Replicated>(Names{name, name, "mlp.shared_experts.gate_weight"}, Shape{1, hidden});
}

AttentionSizes attention_sizes(SizeFields& sizes, const ModelConfig& config,
                               const AttentionDefaults& defaults) {
  const ModelConfig::Names kv_heads{"num_key_value_heads"};
  AttentionSizes attention;
  attention.hidden = sizes.integer({"hidden_size"});
  attention.heads = sizes.integer({"num_attention_heads"});
  // Written as null it is the number of heads; what it is where it is missing depends on the family.
  attention.kv_heads = defaults.kv_heads || config.is_null(kv_heads)
                           ? sizes.integer_or(kv_heads, attention.heads)
                           : sizes.integer(kv_heads);
  if (defaults.head_dim > 0 && config.is_null({"head_dim"})) {
    throw InputError(
        fmt::format("{}: field 'head_dim' is null, which transformers does not take for this model; "
                    "write the number, or leave the field out where it is {}",
                    config.origin(), defaults.head_dim));
  }
  attention.head_dim = config.integer_or(
      {"head_dim"}, defaults.head_dim > 0 ? defaults.head_dim : attention.hidden / attention.heads);
  if (attention.head_dim < 1) {
    throw InputError(config.origin() +
                     ": hidden_size is less than num_attention_heads and head_dim is missing; add it");
  }
  if (attention.heads % attention.kv_heads != 0) {
    throw InputError(
        fmt::format("{}: num_attention_heads {} is no multiple of num_key_value_heads {}; is it the model's "
                    "own config.json?",
                    config.origin(), attention.heads, attention.kv_heads));
  }
  return attention;
}

DecoderParts common_parts(SizeFields& sizes, const ModelConfig& config, std::int64_t hidden,
                          const Ends& ends) {
  const std::int64_t vocabulary = sizes.integer({"vocab_size"});
  const bool tied = config.boolean_or({"tie_word_embeddings"}, ends.tied);
  DecoderParts parts;
  parts.origin = config.origin();
  parts.dtype = config.dtype();
  parts.stored = StoredQuantization::of(config);
  parts.embedding = std::make_shared<Embedding>(ends.embedding, vocabulary, hidden, ends.in_sglang);
  parts.layers = ends.layers ? *ends.layers : sizes.integer({"num_hidden_layers"});
  parts.final_norm = std::make_shared<Replicated>(ends.final_norm, Shape{hidden});
  parts.head =
      std::make_shared<Head>(ends.head, vocabulary, hidden, tied ? &ends.embedding : nullptr, ends.in_sglang);
  return parts;
}

ModelConfig text_model_of(const ModelConfig& wrapper, std::initializer_list<std::string_view> types) {
  ModelConfig text = wrapper.text_model();
  const std::string& type = text.model_type();
  if (!type.empty() && std::ranges::find(types, type) == types.end()) {
    throw InputError(
        fmt::format("{}: field 'model_type' is '{}', but transformers writes {} for the text model of {}; "
                    "correct it",
                    text.origin(), excerpt(type), fmt::join(types, " or "), wrapper.architecture()));
  }
  return text;
}

std::vector<UnsentPart> unsent_towers(const ModelConfig& config, std::initializer_list<TowerField> towers) {
  std::vector<UnsentPart> unsent;
  for (const auto& [field, prefix] : towers) {
    if (!config.has(field)) continue;
    const std::string_view kind = field.substr(0, field.find('_'));
    unsent.push_back(
        {std::string(prefix),
         fmt::format("{}: field '{}' describes {} {} tower, which is not sent; to leave it as the engine has "
                     "it, add --exclude '{}*', or name with --model a copy of the file without that field",
                     config.origin(), field, kind == "audio" ? "an" : "a", kind, prefix)});
  }
  return unsent;
}

void require_no_codes(const DecoderParts& parts, const ModelConfig& config) {
  if (!parts.stored) return;
  const QuantizationPlace place = parts.stored->place();
  throw InputError(
      fmt::format("{}: field '{}' says that it holds codes, which are not read of {}; name a checkpoint in "
                  "bfloat16",
                  place.file, place.field, config.architecture()));
}

std::unique_ptr<Family> decoder(DecoderParts parts, const SizeFields& sizes) {
  parts.sizes = sizes.text();
  return std::make_unique<Decoder>(std::move(parts));
}

}  // namespace weightcast
