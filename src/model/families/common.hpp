#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/blocks/attention.hpp"
#include "model/blocks/decoder.hpp"
#include "model/blocks/gated_mlp.hpp"
#include "model/blocks/replicated.hpp"
#include "model/blocks/routed_experts.hpp"
#include "model/blocks/vocabulary.hpp"
#include "model/megatron.hpp"
#include "model/size_fields.hpp"

namespace weightcast {

// Blocks under the names that most families give them: in checkpoints, in engines of the SGLang and vLLM kind
// and in Megatron-Core.

/// The norm [hidden] before the attention.
BlockPtr input_norm(std::int64_t hidden);
BlockPtr attention(const AttentionSizes& sizes);
/// The norm [hidden] before a dense MLP, and before routed experts.
BlockPtr mlp_norm(std::int64_t hidden);
BlockPtr experts_norm(std::int64_t hidden);
/// The norm that all heads of a projection, `q` or `k`, share.
BlockPtr head_norm(const std::string& of, std::int64_t head_dim);
BlockPtr gated_mlp(const MlpSizes& sizes);
/// The router [experts, hidden].
BlockPtr router(std::int64_t experts, std::int64_t hidden, Replicated::Type type = Replicated::Type::kModel);
/// What is added to the router's scores where experts are chosen.
BlockPtr correction_bias(std::int64_t experts);
BlockPtr routed_experts(const ExpertSizes& sizes);
/// The experts that all tokens use, as one MLP: `module` is what checkpoints and engines call it.
BlockPtr shared_experts(const std::string& module, std::int64_t hidden, std::int64_t inner);
/// What weighs the one of them that Qwen's models have [1, hidden].
BlockPtr shared_expert_gate(std::int64_t hidden);

/// What a family's config in transformers has where config.json says nothing, or null.
struct AttentionDefaults {
  bool kv_heads = false;      ///< each head has keys and values of its own; otherwise the number is needed
  std::int64_t head_dim = 0;  ///< 0: a head has its part of the hidden size
};

/// Sizes of grouped-query attention. Throws InputError for heads that cannot be grouped evenly.
AttentionSizes attention_sizes(SizeFields& sizes, const ModelConfig& config,
                               const AttentionDefaults& defaults = {});

/// What stands before and behind the layers, as most families call it.
struct Ends {
  Names embedding{"model.embed_tokens.weight", "model.embed_tokens.weight", kMegatronEmbedding};
  Names final_norm{"model.norm.weight", "model.norm.weight", "decoder.final_layernorm.weight"};
  Names head{"lm_head.weight", "lm_head.weight", kMegatronHead};
  bool tied = false;                     ///< where the config does not say whether the head is
  std::optional<std::int64_t> layers{};  ///< how many, where not `num_hidden_layers` says so
  InSglang in_sglang = InSglang::kCut;
};

/// What is the same in every family of this kind: embedding, final norm and head, and what a Decoder wants to
/// know beside blocks. The family adds the layers.
DecoderParts common_parts(SizeFields& sizes, const ModelConfig& config, std::int64_t hidden,
                          const Ends& ends = {});

/// The text model of a wrapper, which is of one of `types`, or says nothing of it. Throws InputError for
/// another one, and as ModelConfig::text_model().
ModelConfig text_model_of(const ModelConfig& wrapper, std::initializer_list<std::string_view> types);

/// A field that describes what sees or hears beside a text model, and what its tensors' names begin with.
struct TowerField {
  std::string_view field;  ///< `vision_config`, `audio_config`
  std::string_view prefix;
};

/// Those of these towers that a config describes.
std::vector<UnsentPart> unsent_towers(const ModelConfig& config, std::initializer_list<TowerField> towers);

/// Throws InputError for a checkpoint that holds codes, of a model of which they are not read.
void require_no_codes(const DecoderParts& parts, const ModelConfig& config);

/// A model of such layers, of which `layers` are the kinds. Takes the text of `sizes`, which have all been
/// read by now.
std::unique_ptr<Family> decoder(DecoderParts parts, const SizeFields& sizes);

}  // namespace weightcast
