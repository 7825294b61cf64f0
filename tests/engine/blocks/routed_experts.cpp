#include <algorithm>
#include <limits>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "core/units.hpp"
#include "engine/blocks/block.hpp"
#include "engine/blocks/gated_mlp.hpp"
#include "engine/local_experts.hpp"

namespace weightcast::engine {
namespace {

class RoutedExperts : public Block {
 public:
  explicit RoutedExperts(const BlockSite& site)
      : slots_(site.layout, site.number, site.config.experts), rule_(site.config.router) {
    const ModelConfig& config = site.config;
    const RankLayout& layout = site.layout;
    const std::string at = site.layer + "mlp.";
    router_ = site.load.matrix(at + "gate.weight", config.experts, config.hidden);
    if (rule_.correction_bias) {
      correction_ = site.load.vector(at + "gate.e_score_correction_bias", config.experts);
    }
    chosen_count_ = config.experts_per_token;
    const std::int64_t local = slots_.count();
    // What pads it is zero and adds nothing.
    const std::int64_t inner = round_up(
        divide(config.expert_width, layout.tp_size / layout.ep_size, "rows of an expert"), layout.inner_unit);
    const Tensor w13 = site.load.tensor(at + "experts.w13_weight", {local, 2 * inner, config.hidden});
    const Tensor w2 = site.load.tensor(at + "experts.w2_weight", {local, config.hidden, inner});
    for (std::int64_t expert = 0; expert < local; ++expert) {
      GatedMlp mlp = halves(w13, expert * 2 * inner, inner, config.hidden, layout.up_first);
      mlp.down = cut_rows(w2, expert * config.hidden, config.hidden, inner);
      experts_.push_back(std::move(mlp));
    }
    if (config.shared_width == 0) return;
    shared_ = load_gated_mlp(site, at + config.shared_module, config.shared_width);
    if (config.shared_gate)
      shared_gate_ = site.load.matrix(at + "shared_expert_gate.weight", 1, config.hidden);
  }

  Matrix run(const Matrix& input) const override {
    Matrix result(input.rows, input.cols);
    for (std::int64_t token = 0; token < input.rows; ++token) {
      const auto sum = result.row(token);
      const auto add_weighted = [&](const GatedMlp& mlp, float weight) {
        const std::vector<float> out = mlp.run(input.row(token));
        for (std::size_t i = 0; i < out.size(); ++i) sum[i] += weight * out[i];
      };
      for (const auto& [expert, weight] : route(input.row(token))) {
        const std::int64_t local = slots_.slot_for(static_cast<std::int64_t>(expert), token);
        if (local < 0) continue;  // another rank's
        add_weighted(experts_[static_cast<std::size_t>(local)], weight);
      }
      if (!shared_) continue;
      const bool gated = shared_gate_.rows > 0;
      add_weighted(*shared_, gated ? sigmoid(dot(shared_gate_.row(0), input.row(token))) : 1.0F);
    }
    return result;
  }

 private:
  /// A token's experts and how much each of them counts.
  std::vector<std::pair<std::size_t, float>> route(std::span<const float> token) const {
    std::vector<float> scores = multiply(router_, token);
    if (rule_.sigmoid) {
      std::ranges::transform(scores, scores.begin(), sigmoid);
    } else {
      softmax(scores);
    }
    std::vector<float> preferences = scores;
    if (rule_.correction_bias) add(correction_, preferences);
    leave_best_groups(preferences);
    std::vector<std::pair<std::size_t, float>> chosen;
    float total = 0;
    for (const std::size_t expert : greatest_indices(preferences, chosen_count_)) {
      chosen.emplace_back(expert, scores[expert]);
      total += scores[expert];
    }
    for (auto& [expert, weight] : chosen) {
      if (rule_.normalize) weight /= total;
      weight *= rule_.scale;
    }
    return chosen;
  }

  /// Rules out all experts but those of the groups whose two best together are preferred most.
  void leave_best_groups(std::vector<float>& preferences) const {
    if (rule_.groups <= 1) return;
    const std::size_t size = preferences.size() / static_cast<std::size_t>(rule_.groups);
    std::vector<float> groups;
    for (std::size_t first = 0; first < preferences.size(); first += size) {
      const auto group = std::span(preferences).subspan(first, size);
      float best = 0;
      for (const std::size_t expert : greatest_indices(group, 2)) best += group[expert];
      groups.push_back(best);
    }
    const std::vector<std::size_t> left = greatest_indices(groups, rule_.chosen_groups);
    for (std::size_t expert = 0; expert < preferences.size(); ++expert) {
      if (std::ranges::find(left, expert / size) != left.end()) continue;
      preferences[expert] = -std::numeric_limits<float>::infinity();
    }
  }

  LocalExperts slots_;
  RouterRule rule_;
  Matrix router_;
  std::vector<float> correction_;
  std::int64_t chosen_count_ = 0;
  std::vector<GatedMlp> experts_;
  std::optional<GatedMlp> shared_;
  Matrix shared_gate_;  ///< [1, hidden] or empty
};

}  // namespace

std::unique_ptr<Block> routed_experts(const BlockSite& site) {
  return std::make_unique<RoutedExperts>(site);
}

}  // namespace weightcast::engine
