#include <cmath>
#include <utility>
#include <vector>

#include "engine/blocks/attend.hpp"
#include "engine/blocks/block.hpp"
#include "engine/blocks/rotary.hpp"

namespace weightcast::engine {
namespace {

class GroupedAttention : public Block {
 public:
  explicit GroupedAttention(const BlockSite& site)
      : config_(site.config), rotary_(site.config), adds_bias_(site.layout.tp_rank == 0) {
    const std::int64_t tp = site.layout.tp_size;
    const std::int64_t dim = config_.head_dim;
    heads_ = divide(config_.heads, tp, "attention heads");
    // With more ranks than key/value heads, each of those heads is held by several ranks.
    kv_heads_ = config_.kv_heads >= tp ? divide(config_.kv_heads, tp, "key/value heads") : 1;
    if (config_.kv_heads < tp) divide(tp, config_.kv_heads, "tensor-parallel ranks over key/value heads");
    const std::int64_t query_rows = (config_.attention_gate ? 2 : 1) * heads_;
    const std::string at = site.layer + config_.attention_module;
    qkv_ = site.load.linear(at + "qkv_proj", (query_rows + 2 * kv_heads_) * dim, config_.hidden,
                            config_.attention_bias);
    if (config_.head_norms) {
      q_norm_ = site.load.norm(at + "q_norm.weight", dim);
      k_norm_ = site.load.norm(at + "k_norm.weight", dim);
    }
    if (config_.attention_sinks) sinks_ = site.load.vector(at + "sinks", heads_);
    const auto layer = static_cast<std::size_t>(site.number);
    if (layer < config_.window.size()) window_ = config_.window[layer];
    output_ = site.load.linear(at + "o_proj", config_.hidden, heads_ * dim, config_.attention_bias);
  }

  Matrix run(const Matrix& input) const override {
    Matrix qkv = multiply(qkv_.weight, input);
    add_to_rows(qkv_.bias, qkv);
    const std::int64_t dim = config_.head_dim;
    const std::int64_t queries_end = qkv.cols - 2 * kv_heads_ * dim;
    // A gate follows the query of each head.
    const std::int64_t stride = config_.attention_gate ? 2 : 1;
    Matrix queries(input.rows, heads_ * dim);
    for (std::int64_t token = 0; token < input.rows; ++token) {
      for (std::int64_t head = 0; head < heads_; ++head) {
        std::ranges::copy(head_of(qkv, token, stride * head, dim),
                          head_of(queries, token, head, dim).begin());
      }
    }
    Matrix keys = columns(qkv, queries_end, kv_heads_ * dim);
    const Matrix values = columns(qkv, queries_end + kv_heads_ * dim, kv_heads_ * dim);
    normalize_and_turn(queries, q_norm_);
    normalize_and_turn(keys, k_norm_);
    Matrix seen = attend(queries, keys, values,
                         {heads_, kv_heads_, 1.0F / std::sqrt(static_cast<float>(dim)), window_, sinks_});
    if (config_.attention_gate) apply_gates(qkv, seen);
    Matrix result = multiply(output_.weight, seen);
    // Every rank holds the whole bias, and it counts once.
    if (adds_bias_) add_to_rows(output_.bias, result);
    return result;
  }

 private:
  void normalize_and_turn(Matrix& heads, const std::vector<float>& norm) const {
    for (std::int64_t token = 0; token < heads.rows; ++token) {
      for (std::int64_t head = 0; head < heads.cols / config_.head_dim; ++head) {
        const auto of = head_of(heads, token, head, config_.head_dim);
        if (!norm.empty()) normalize_to_rms(of, norm, config_.norm_epsilon, of);
        rotary_.turn(of, token);
      }
    }
  }

  void apply_gates(const Matrix& qkv, Matrix& seen) const {
    for (std::int64_t token = 0; token < seen.rows; ++token) {
      for (std::int64_t head = 0; head < heads_; ++head) {
        const auto gate = head_of(qkv, token, 2 * head + 1, config_.head_dim);
        const auto of = head_of(seen, token, head, config_.head_dim);
        for (std::size_t i = 0; i < of.size(); ++i) of[i] *= sigmoid(gate[i]);
      }
    }
  }

  ModelConfig config_;
  Rotary rotary_;
  bool adds_bias_;
  std::int64_t heads_ = 0;
  std::int64_t kv_heads_ = 0;
  Linear qkv_;
  std::vector<float> q_norm_;
  std::vector<float> k_norm_;
  std::vector<float> sinks_;
  std::int64_t window_ = 0;
  Linear output_;
};

}  // namespace

std::unique_ptr<Block> grouped_attention(const BlockSite& site) {
  return std::make_unique<GroupedAttention>(site);
}

}  // namespace weightcast::engine
