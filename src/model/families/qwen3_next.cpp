#include "model/families/drafts.hpp"
#include "model/families/families.hpp"
#include "model/families/halves.hpp"
#include "model/families/hybrid.hpp"
#include "model/families/layer_kinds.hpp"

namespace weightcast {

/// Qwen3-Next: three layers of linear attention for each of full attention; what is projected for the linear
/// one is grouped by key heads.
std::unique_ptr<Family> make_qwen3_next(const ModelConfig& config) {
  SizeFields sizes(config);
  const std::int64_t hidden = sizes.integer({"hidden_size"});
  DecoderParts parts = common_parts(sizes, config, hidden);
  if (config.drafts() == Drafts::kLeftOut) parts.left_out = {"mtp."};
  parts.sglang.replaced = {{".self_attn.", "."}};
  const HybridAttention first = hybrid_attention(sizes, config, parts, true);
  const auto is_full = first.is_full;
  const auto is_dense = dense_by_step(config);
  constexpr std::size_t kDense = 1;
  constexpr std::size_t kFull = 2;
  add_layers(
      parts,
      [=](std::int64_t layer) { return (is_dense(layer) ? kDense : 0) + (is_full(layer) ? kFull : 0); },
      [&](std::size_t kind) {
        return joined(
            (kind & kFull) != 0 ? first.full : first.linear,
            (kind & kDense) != 0 ? dense_half(sizes, hidden) : gated_sparse_half(sizes, config, hidden));
      });
  parts.drafts = mtp_drafts(
      config, "num_nextn_predict_layers", hidden,
      joined(first.full, is_dense(0) ? dense_half(sizes, hidden) : gated_sparse_half(sizes, config, hidden)));
  return decoder(std::move(parts), sizes);
}

}  // namespace weightcast
