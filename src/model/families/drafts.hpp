#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "model/blocks/decoder.hpp"
#include "model/config.hpp"

namespace weightcast {

/// Draft layers as models of DeepSeek-V3's kind and GLM's have them, numbered on behind the model's last
/// layer, each with norms and a projection that join it to the model, and a norm behind it. They repeat the
/// model's embedding and head, which may lie beside them in checkpoints and are not read there. `body` are
/// the blocks of such a layer. Nothing where the config does not ask for them. (SGLang's
/// DeepseekV3ForCausalLMNextN and Glm4MoeForCausalLMNextN, vLLM's DeepSeekMTP and Glm4MoeMTP.)
std::optional<DraftParts> nextn_drafts(const ModelConfig& config, const DecoderParts& parts,
                                       std::int64_t hidden, LayerBlocks body);

/// The draft layers of a config that asks for them, as many as it says in `field`, as Qwen3-Next and Qwen3.5
/// have them, below `mtp.`: layers of full attention with one projection and one norm for all. They share the
/// model's embedding and head. (SGLang's Qwen3NextForCausalLMMTP and Qwen3_5ForCausalLMMTP, vLLM's
/// Qwen3NextMTP and Qwen3_5MTP.)
std::optional<DraftParts> mtp_drafts(const ModelConfig& config, const char* field, std::int64_t hidden,
                                     LayerBlocks body);

}  // namespace weightcast
