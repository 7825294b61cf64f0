#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "core/units.hpp"
#include "engine/blocks/block.hpp"
#include "engine/local_experts.hpp"

namespace weightcast::engine {
namespace {

constexpr float kSlope = 1.702F;  // of the gate's sigmoid

class InterleavedExperts : public Block {
 public:
  explicit InterleavedExperts(const BlockSite& site)
      : slots_(site.layout, site.number, site.config.experts),
        limit_(static_cast<float>(site.config.interleaved_limit)) {
    const ModelConfig& config = site.config;
    const RankLayout& layout = site.layout;
    const std::string at = site.layer + "mlp.";
    router_ = site.load.linear(at + "router", config.experts, config.hidden, true);
    chosen_count_ = config.experts_per_token;
    const std::int64_t local = slots_.count();
    // What pads it is zero and adds nothing.
    const std::int64_t inner = round_up(
        divide(config.expert_width, layout.tp_size / layout.ep_size, "rows of an expert"), layout.inner_unit);
    const Tensor w13 = site.load.tensor(at + "experts.w13_weight", {local, 2 * inner, config.hidden});
    const Tensor w13_bias = site.load.tensor(at + "experts.w13_weight_bias", {local, 2 * inner});
    const Tensor w2 = site.load.tensor(at + "experts.w2_weight", {local, config.hidden, inner});
    const Tensor w2_bias = site.load.tensor(at + "experts.w2_weight_bias", {local, config.hidden});
    for (std::int64_t expert = 0; expert < local; ++expert) {
      experts_.push_back({{cut_rows(w13, expert * 2 * inner, 2 * inner, config.hidden),
                           cut_rows(w13_bias, expert, 1, 2 * inner).values},
                          {cut_rows(w2, expert * config.hidden, config.hidden, inner),
                           cut_rows(w2_bias, expert, 1, config.hidden).values}});
    }
  }

  Matrix run(const Matrix& input) const override {
    Matrix result(input.rows, input.cols);
    Matrix scores = multiply(router_.weight, input);
    add_to_rows(router_.bias, scores);
    for (std::int64_t token = 0; token < input.rows; ++token) {
      const std::vector<std::size_t> chosen = greatest_indices(scores.row(token), chosen_count_);
      std::vector<float> weights;
      for (const std::size_t expert : chosen) weights.push_back(scores.row(token)[expert]);
      softmax(weights);
      for (std::size_t i = 0; i < chosen.size(); ++i) {
        const std::int64_t local = slots_.slot_for(static_cast<std::int64_t>(chosen[i]), token);
        if (local < 0) continue;  // another rank's
        const auto out = run(experts_[static_cast<std::size_t>(local)], input.row(token));
        const auto sum = result.row(token);
        for (std::size_t h = 0; h < out.size(); ++h) sum[h] += weights[i] * out[h];
      }
    }
    return result;
  }

 private:
  struct Expert {
    Linear gate_up;  ///< rows of gate and up in turn
    Linear down;     ///< its bias is zero on all but one of the ranks that share the expert
  };

  std::vector<float> run(const Expert& expert, std::span<const float> token) const {
    std::vector<float> both = multiply(expert.gate_up.weight, token);
    add(expert.gate_up.bias, both);
    std::vector<float> inner;
    for (std::size_t i = 0; i < both.size(); i += 2) {
      const float gate = std::min(both[i], limit_);
      const float up = std::clamp(both[i + 1], -limit_, limit_);
      inner.push_back((up + 1) * gate * sigmoid(kSlope * gate));
    }
    std::vector<float> out = multiply(expert.down.weight, inner);
    add(expert.down.bias, out);
    return out;
  }

  LocalExperts slots_;
  float limit_;
  Linear router_;
  std::int64_t chosen_count_ = 0;
  std::vector<Expert> experts_;
};

}  // namespace

std::unique_ptr<Block> interleaved_experts(const BlockSite& site) {
  return std::make_unique<InterleavedExperts>(site);
}

}  // namespace weightcast::engine
