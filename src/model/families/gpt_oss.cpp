#include <fmt/format.h>

#include <string>

#include "core/error.hpp"
#include "model/blocks/head_vector.hpp"
#include "model/blocks/interleaved_experts.hpp"
#include "model/blocks/mxfp4_experts.hpp"
#include "model/families/common.hpp"
#include "model/families/families.hpp"

namespace weightcast {

namespace {

/// Throws InputError for codes that experts of gpt-oss do not come in, or sizes that those do not fit.
void require_mxfp4(const StoredQuantization& stored, const ModelConfig& config,
                   const InterleavedExpertSizes& sizes) {
  if (stored.quantizer().scheme != QuantScheme::kMxfp4) {
    throw InputError(
        fmt::format("{}: field '{}' says that it holds codes of {}, which are not read of "
                    "gpt-oss; name a checkpoint in MXFP4 or in bfloat16",
                    stored.place().file, stored.place().field, quantizer_name(stored.quantizer())));
  }
  const std::int64_t group = block_cols(QuantScheme::kMxfp4);
  for (const auto& [field, size] :
       {std::pair{"hidden_size", sizes.hidden}, std::pair{"intermediate_size", sizes.inner}}) {
    if (size % group == 0) continue;
    throw InputError(fmt::format(
        "{}: field '{}' is {}, no multiple of the {} elements of a row that share a scale in MXFP4; correct "
        "it, or remove field '{}' where the weights are values",
        config.origin(), field, size, group, stored.place().field));
  }
}

}  // namespace

/// gpt-oss: attention with sinks, biases everywhere, and experts that are stored transposed in bfloat16, or
/// as codes of MXFP4. vLLM has names of its own for the embedding and the attention.
std::unique_ptr<Family> make_gpt_oss(const ModelConfig& config) {
  SizeFields sizes(config);
  AttentionSizes heads = attention_sizes(sizes, config, {.head_dim = 64});
  heads.qkv_bias = heads.output_bias = config.boolean_or({"attention_bias"}, true);
  DecoderParts parts = common_parts(sizes, config, heads.hidden);
  parts.vllm.replaced = {{"model.embed_tokens.", "model.embedding."}, {"self_attn.", "attn."}};
  const InterleavedExpertSizes experts{heads.hidden, sizes.integer({"intermediate_size"}),
                                       sizes.integer({"num_local_experts", "num_experts"})};
  if (parts.stored) {
    require_mxfp4(*parts.stored, config, experts);
    parts.stored->keep_linear_layers();
  }
  const auto router = [&](const std::string& kind, Shape shape) {
    const std::string name = "mlp.router." + kind;
    return std::make_shared<Replicated>(Names{name, name, name}, shape);
  };
  const Names sinks{"self_attn.sinks", "self_attn.sinks", "self_attention.core_attention.softmax_offset"};
  const Names stacked{"mlp.experts", "mlp.experts", "mlp.experts"};
  BlockPtr routed = parts.stored ? BlockPtr(std::make_shared<Mxfp4Experts>(stacked, experts))
                                 : std::make_shared<InterleavedExperts>(stacked, experts);
  parts.kinds = {{input_norm(heads.hidden), attention(heads),
                  std::make_shared<HeadVector>(sinks, heads.heads, 1), experts_norm(heads.hidden),
                  router("weight", {experts.experts, heads.hidden}), router("bias", {experts.experts}),
                  std::move(routed)}};
  return decoder(std::move(parts), sizes);
}

}  // namespace weightcast
