#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "engine/blocks/attend.hpp"
#include "engine/blocks/block.hpp"
#include "engine/blocks/latent_split.hpp"
#include "engine/blocks/rotary.hpp"

namespace weightcast::engine {
namespace {

/// Computed as engines do when they generate: queries go into the latent space, where all heads share one key
/// and one value, and what they have seen comes back from there.
class LatentAttention : public Block {
 public:
  explicit LatentAttention(const BlockSite& site) : config_(site.config), rotary_(site.config) {
    const LatentSizes& sizes = config_.latent;
    heads_ = divide(config_.heads, site.layout.tp_size, "attention heads");
    const std::string at = site.layer + "self_attn.";
    const std::int64_t query_rows = heads_ * (sizes.nope_dim + sizes.rope_dim);
    const std::int64_t kv_rows = sizes.kv_rank + sizes.rope_dim;
    if (sizes.query_rank > 0) {
      down_ = site.load.matrix(at + "fused_qkv_a_proj_with_mqa.weight", sizes.query_rank + kv_rows,
                               config_.hidden);
      query_norm_ = site.load.norm(at + "q_a_layernorm.weight", sizes.query_rank);
      queries_ = site.load.matrix(at + "q_b_proj.weight", query_rows, sizes.query_rank);
    } else {
      down_ = site.load.matrix(at + "kv_a_proj_with_mqa.weight", kv_rows, config_.hidden);
      queries_ = site.load.matrix(at + "q_proj.weight", query_rows, config_.hidden);
    }
    kv_norm_ = site.load.norm(at + "kv_a_layernorm.weight", sizes.kv_rank);
    split_ = split_latent(
        site.load.matrix(at + "kv_b_proj.weight", heads_ * (sizes.nope_dim + sizes.value_dim), sizes.kv_rank),
        sizes.nope_dim, sizes.value_dim);
    output_ = site.load.matrix(at + "o_proj.weight", config_.hidden, heads_ * sizes.value_dim);
  }

  Matrix run(const Matrix& input) const override {
    const LatentSizes& sizes = config_.latent;
    const Matrix down = multiply(down_, input);
    const Matrix latent =
        normalize_to_rms(columns(down, sizes.query_rank, sizes.kv_rank), kv_norm_, config_.norm_epsilon);
    const Matrix queries =
        sizes.query_rank > 0 ? multiply(queries_, compressed_queries(down)) : multiply(queries_, input);
    const float scale =
        static_cast<float>(sizes.scale) / std::sqrt(static_cast<float>(sizes.nope_dim + sizes.rope_dim));
    const Matrix seen = attend(in_latent_space(queries), keys(latent, down), latent, {heads_, 1, scale});
    return multiply(output_, out_of_latent_space(seen));
  }

 private:
  Matrix compressed_queries(const Matrix& down) const {
    return normalize_to_rms(columns(down, 0, config_.latent.query_rank), query_norm_, config_.norm_epsilon);
  }

  /// [tokens, kv_rank + rope_dim]: the one key of all heads.
  Matrix keys(const Matrix& latent, const Matrix& down) const {
    const LatentSizes& sizes = config_.latent;
    Matrix turned = columns(down, sizes.query_rank + sizes.kv_rank, sizes.rope_dim);
    Matrix result(latent.rows, sizes.kv_rank + sizes.rope_dim);
    for (std::int64_t token = 0; token < latent.rows; ++token) {
      rotary_.turn(turned.row(token), token);
      const auto end = std::ranges::copy(latent.row(token), result.row(token).begin()).out;
      std::ranges::copy(turned.row(token), end);
    }
    return result;
  }

  /// [tokens, heads × (nope_dim + rope_dim)] to [tokens, heads × (kv_rank + rope_dim)].
  Matrix in_latent_space(const Matrix& queries) const {
    const LatentSizes& sizes = config_.latent;
    Matrix result(queries.rows, heads_ * (sizes.kv_rank + sizes.rope_dim));
    for (std::int64_t token = 0; token < queries.rows; ++token) {
      for (std::int64_t head = 0; head < heads_; ++head) {
        const auto from = head_of(queries, token, head, sizes.nope_dim + sizes.rope_dim);
        const auto to = head_of(result, token, head, sizes.kv_rank + sizes.rope_dim);
        const auto nope = static_cast<std::size_t>(sizes.nope_dim);
        const auto rank = static_cast<std::size_t>(sizes.kv_rank);
        std::ranges::copy(multiply(split_.keys[static_cast<std::size_t>(head)], from.first(nope)),
                          to.begin());
        std::ranges::copy(from.subspan(nope), to.subspan(rank).begin());
        rotary_.turn(to.subspan(rank), token);
      }
    }
    return result;
  }

  /// [tokens, heads × kv_rank] to [tokens, heads × value_dim].
  Matrix out_of_latent_space(const Matrix& seen) const {
    const LatentSizes& sizes = config_.latent;
    Matrix result(seen.rows, heads_ * sizes.value_dim);
    for (std::int64_t token = 0; token < seen.rows; ++token) {
      for (std::int64_t head = 0; head < heads_; ++head) {
        const auto from = head_of(seen, token, head, sizes.kv_rank);
        std::ranges::copy(multiply(split_.values[static_cast<std::size_t>(head)], from),
                          head_of(result, token, head, sizes.value_dim).begin());
      }
    }
    return result;
  }

  ModelConfig config_;
  Rotary rotary_;
  std::int64_t heads_ = 0;
  Matrix down_;  ///< to compressed queries, if there are any, the latent state and the key that is turned
  std::vector<float> query_norm_;
  Matrix queries_;
  std::vector<float> kv_norm_;
  LatentSplit split_;
  Matrix output_;
};

}  // namespace

std::unique_ptr<Block> latent_attention(const BlockSite& site) {
  return std::make_unique<LatentAttention>(site);
}

}  // namespace weightcast::engine
