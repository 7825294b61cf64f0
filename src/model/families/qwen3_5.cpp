#include <cstdint>

#include "model/families/drafts.hpp"
#include "model/families/families.hpp"
#include "model/families/halves.hpp"
#include "model/families/hybrid.hpp"
#include "model/families/layer_kinds.hpp"

namespace weightcast {

namespace {

enum class Mlp : std::uint8_t { kDense, kSparse };

/// The text model; `around` is the config of one that sees, in which it is a part.
std::unique_ptr<Family> make_text(const ModelConfig& config, Mlp mlp, const ModelConfig* around = nullptr) {
  SizeFields sizes(config);
  const std::int64_t hidden = sizes.integer({"hidden_size"});
  DecoderParts parts = common_parts(sizes, config, hidden);
  if (config.drafts() == Drafts::kLeftOut) parts.left_out = {"mtp."};
  parts.sglang.replaced = {{".self_attn.", "."}};
  if (around != nullptr) {
    parts.unsent = unsent_towers(*around, {{"vision_config", "model.visual."}});
    parts.vllm.prefix = "language_model.";
    parts.in_files = {{"model.", "model.language_model."}};
    parts.towers = {"model.visual.", "visual."};
    parts.left_out.insert(parts.left_out.end(), parts.towers.begin(), parts.towers.end());
  }
  const HybridAttention first = hybrid_attention(sizes, config, parts, false);
  const LayerBlocks second =
      mlp == Mlp::kSparse ? gated_sparse_half(sizes, config, hidden) : dense_half(sizes, hidden);
  const auto is_full = first.is_full;
  add_layers(
      parts, [is_full](std::int64_t layer) -> std::size_t { return is_full(layer) ? 1 : 0; },
      [&](std::size_t kind) { return joined(kind == 1 ? first.full : first.linear, second); });
  parts.drafts = mtp_drafts(config, "mtp_num_hidden_layers", hidden, joined(first.full, second));
  return decoder(std::move(parts), sizes);
}

}  // namespace

/// Qwen3.5 to 3.8 without vision: as Qwen3-Next, with the projections of the linear attention as they are.
std::unique_ptr<Family> make_qwen3_5(const ModelConfig& config) {
  return make_text(config, Mlp::kDense);
}

/// The same with routed experts in all layers.
std::unique_ptr<Family> make_qwen3_5_moe(const ModelConfig& config) {
  return make_text(config, Mlp::kSparse);
}

/// The text models of those that see.
std::unique_ptr<Family> make_qwen3_5_vl(const ModelConfig& config) {
  return make_text(text_model_of(config, {"qwen3_5_text"}), Mlp::kDense, &config);
}

std::unique_ptr<Family> make_qwen3_5_moe_vl(const ModelConfig& config) {
  return make_text(text_model_of(config, {"qwen3_5_moe_text"}), Mlp::kSparse, &config);
}

}  // namespace weightcast
