#include "engine/engine.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <utility>

#include "core/error.hpp"
#include "engine/loader.hpp"

namespace weightcast::engine {
namespace {

constexpr std::int64_t kVocabularyStep = 64;  // engines pad the vocabulary to a multiple of this

std::int64_t padded_vocabulary(std::int64_t vocab) {
  return (vocab + kVocabularyStep - 1) / kVocabularyStep * kVocabularyStep;
}

/// The rank's rows of the embedding or the head.
Matrix load_vocabulary(const std::string& name, const ModelConfig& config, const RankLayout& layout,
                       Loader& load) {
  const std::int64_t rows = divide(padded_vocabulary(config.vocab), layout.tp_size, "vocabulary rows");
  Matrix table = load.matrix(name, rows, config.hidden);
  for (std::int64_t row = std::max<std::int64_t>(config.vocab - layout.tp_rank * rows, 0); row < rows;
       ++row) {
    if (!std::ranges::all_of(table.row(row), [](float value) { return value == 0.0F; })) {
      throw InputError(fmt::format("parameter {}: row {} is padding but not zero", name, row));
    }
  }
  return table;
}

std::unique_ptr<Block> attention(AttentionKind kind, const BlockSite& site) {
  switch (kind) {
    case AttentionKind::kGrouped:
      return grouped_attention(site);
    case AttentionKind::kLatent:
      return latent_attention(site);
    case AttentionKind::kDelta:
      return gated_delta_net(site);
  }
  throw InternalError("an attention of no kind");
}

std::unique_ptr<Block> mlp(bool sparse, const BlockSite& site) {
  if (!sparse) return dense_mlp(site);
  return site.config.interleaved_limit > 0 ? interleaved_experts(site) : routed_experts(site);
}

}  // namespace

Model::Model(const ModelConfig& config, const RankLayout& layout, const ParameterSource& source, Group& group)
    : config_(config), layout_(layout), group_(&group) {
  check_layout(layout, group);
  Loader load(source, config.norms_add_one);
  embedding_ = load_vocabulary("model.embed_tokens.weight", config, layout, load);
  if (!config.tied_embeddings) head_ = load_vocabulary("lm_head.weight", config, layout, load);
  for (std::int64_t index = 0; index < config.layers; ++index) {
    const auto number = static_cast<std::size_t>(index);
    const BlockSite site{load, config, layout, index, fmt::format("model.layers.{}.", index)};
    halves_.push_back({load.norm(site.layer + "input_layernorm.weight", config.hidden),
                       attention(config.attention[number], site)});
    halves_.push_back({load.norm(site.layer + "post_attention_layernorm.weight", config.hidden),
                       mlp(config.sparse[number], site)});
  }
  final_norm_ = load.norm("model.norm.weight", config.hidden);
  load.expect_all_read();
}

Matrix Model::embed(std::span<const std::int64_t> ids) const {
  Matrix result(static_cast<std::int64_t>(ids.size()), config_.hidden);
  const std::int64_t first = layout_.tp_rank * embedding_.rows;
  for (std::size_t token = 0; token < ids.size(); ++token) {
    if (ids[token] < 0 || ids[token] >= config_.vocab) {
      throw InputError(fmt::format("token {} is outside the vocabulary of {}", ids[token], config_.vocab));
    }
    const std::int64_t local = ids[token] - first;
    if (local < 0 || local >= embedding_.rows) continue;  // another rank holds it
    std::ranges::copy(embedding_.row(local), result.row(static_cast<std::int64_t>(token)).begin());
  }
  group_->sum(result.values);
  return result;
}

Matrix Model::hidden_states(std::span<const std::int64_t> ids) const {
  Matrix hidden = embed(ids);
  for (const Half& half : halves_) {
    Matrix output = half.block->run(normalize_to_rms(hidden, half.norm, config_.norm_epsilon));
    group_->sum(output.values);
    add(output.values, hidden.values);
  }
  return normalize_to_rms(hidden, final_norm_, config_.norm_epsilon);
}

Matrix Model::project_to_vocabulary(const Matrix& hidden) const {
  const Matrix local = multiply(config_.tied_embeddings ? embedding_ : head_, hidden);
  const std::vector<float> gathered = group_->gather(local.values);
  Matrix result(hidden.rows, config_.vocab);
  for (std::int64_t token = 0; token < hidden.rows; ++token) {
    const auto out = result.row(token);
    for (std::int64_t id = 0; id < config_.vocab; ++id) {
      const std::int64_t rank = id / local.cols;
      const std::int64_t at = (rank * hidden.rows + token) * local.cols + id % local.cols;
      out[static_cast<std::size_t>(id)] = gathered[static_cast<std::size_t>(at)];
    }
  }
  return result;
}

Matrix Model::logits(std::span<const std::int64_t> ids) const {
  return project_to_vocabulary(hidden_states(ids));
}

std::vector<std::int64_t> Model::generate(std::span<const std::int64_t> prompt,
                                          std::int64_t new_tokens) const {
  std::vector<std::int64_t> ids(prompt.begin(), prompt.end());
  for (std::int64_t step = 0; step < new_tokens; ++step) {
    const Matrix hidden = hidden_states(ids);
    Matrix last(1, hidden.cols);
    std::ranges::copy(hidden.row(hidden.rows - 1), last.values.begin());
    const Matrix scores = project_to_vocabulary(last);
    ids.push_back(std::ranges::max_element(scores.values) - scores.values.begin());
    if (std::ranges::find(config_.end_tokens, ids.back()) != config_.end_tokens.end()) break;
  }
  return ids;
}

}  // namespace weightcast::engine
