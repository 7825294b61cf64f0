#include "engine/engine.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <string>
#include <utility>

#include "core/error.hpp"
#include "core/float_bits.hpp"
#include "core/units.hpp"

namespace weightcast::engine {
namespace {

constexpr std::int64_t kVocabularyStep = 64;  // engines pad the vocabulary to a multiple of this

/// One frequency for each pair of elements of a head.
std::vector<float> rotary_frequencies(const ModelConfig& config) {
  std::vector<float> frequencies;
  for (std::int64_t i = 0; i < config.head_dim / 2; ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(config.head_dim);
    const auto frequency = static_cast<float>(1.0 / std::pow(config.rope_theta, exponent));
    frequencies.push_back(config.bf16_frequencies ? bf16_value(bf16_bits(frequency)) : frequency);
  }
  return frequencies;
}

std::int64_t divide(std::int64_t total, std::int64_t parts, const char* what) {
  if (parts <= 0 || total % parts != 0) {
    throw InputError(fmt::format("{} {} cannot be cut {} ways", total, what, parts));
  }
  return total / parts;
}

std::int64_t padded_vocabulary(std::int64_t vocab) {
  return (vocab + kVocabularyStep - 1) / kVocabularyStep * kVocabularyStep;
}

void check_layout(const RankLayout& layout, const Group& group) {
  if (layout.tp_size != group.size() || layout.tp_rank != group.rank()) {
    throw InputError(fmt::format("the shard is tp rank {} of {}, the process is rank {} of {}",
                                 layout.tp_rank, layout.tp_size, group.rank(), group.size()));
  }
  const std::int64_t inside = divide(layout.tp_size, layout.ep_size, "tensor-parallel ranks");
  if (layout.ep_rank != layout.tp_rank / inside) {
    throw InputError(fmt::format("tp rank {} of {} is ep rank {} of {}, not {}", layout.tp_rank,
                                 layout.tp_size, layout.tp_rank / inside, layout.ep_size, layout.ep_rank));
  }
}

float dot(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * double{b[i]};
  return static_cast<float>(sum);
}

float silu(float x) {
  return x / (1.0F + std::exp(-x));
}

void normalize_to_rms(std::span<const float> from, const std::vector<float>& weight, double epsilon,
                      std::span<float> to) {
  const double mean_square = double{dot(from, from)} / static_cast<double>(from.size());
  const auto scale = static_cast<float>(1.0 / std::sqrt(mean_square + epsilon));
  for (std::size_t i = 0; i < from.size(); ++i) to[i] = weight[i] * (from[i] * scale);
}

void add(const Matrix& values, Matrix& to) {
  for (std::size_t i = 0; i < to.values.size(); ++i) to.values[i] += values.values[i];
}

/// Adds `bias`, unless there is none, to each row.
void add_bias(const std::vector<float>& bias, Matrix& to) {
  if (bias.empty()) return;
  for (std::size_t i = 0; i < to.values.size(); ++i) to.values[i] += bias[i % bias.size()];
}

void softmax(std::span<float> values) {
  const float greatest = *std::ranges::max_element(values);
  float sum = 0;
  for (float& value : values) {
    value = std::exp(value - greatest);
    sum += value;
  }
  for (float& value : values) value /= sum;
}

/// Indices of the `count` greatest values, the greatest first.
std::vector<std::size_t> greatest_indices(std::span<const float> values, std::int64_t count) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) { return values[a] > values[b]; });
  order.resize(static_cast<std::size_t>(count));
  return order;
}

}  // namespace

/// Reads parameters by name, insists on their shapes, and remembers which were asked for.
class Model::Loader {
 public:
  explicit Loader(const ParameterSource& source) : source_(source) {}

  std::vector<float> vector(const std::string& name, std::int64_t size) {
    return std::move(read(name, Shape{size}).values);
  }

  Matrix matrix(const std::string& name, std::int64_t rows, std::int64_t cols) {
    Matrix result;
    result.rows = rows;
    result.cols = cols;
    result.values = std::move(read(name, Shape{rows, cols}).values);
    return result;
  }

  Linear linear(const std::string& prefix, std::int64_t out, std::int64_t in, bool bias) {
    Linear result;
    result.weight = matrix(prefix + ".weight", out, in);
    if (bias) result.bias = vector(prefix + ".bias", out);
    return result;
  }

  Tensor read(const std::string& name, const Shape& shape) {
    Tensor tensor = source_.read(name);
    if (tensor.shape != shape) {
      throw InputError(fmt::format("parameter {} has shape {}, the layout asks for {}", name,
                                   tensor.shape.to_string(), shape.to_string()));
    }
    read_.insert(name);
    return tensor;
  }

  /// A parameter that nobody reads is one that nobody checks.
  void expect_all_read() const {
    for (const std::string& name : source_.names()) {
      if (!read_.contains(name)) throw InputError(fmt::format("parameter {} is not part of the model", name));
    }
  }

 private:
  const ParameterSource& source_;
  std::set<std::string> read_;
};

namespace {

/// Rows [first, first + rows) of a parameter with `cols` columns, as a matrix of its own.
Matrix cut_rows(const Tensor& tensor, std::int64_t first, std::int64_t rows, std::int64_t cols) {
  Matrix result(rows, cols);
  std::copy_n(tensor.values.begin() + first * cols, rows * cols, result.values.begin());
  return result;
}

void expect_zero_padding(const Matrix& table, std::int64_t first_row, std::int64_t vocab, const char* name) {
  for (std::int64_t row = std::max<std::int64_t>(vocab - first_row, 0); row < table.rows; ++row) {
    if (!std::ranges::all_of(table.row(row), [](float value) { return value == 0.0F; })) {
      throw InputError(fmt::format("parameter {}: row {} is padding but not zero", name, row));
    }
  }
}

}  // namespace

Model::Model(const ModelConfig& config, const RankLayout& layout, const ParameterSource& source, Group& group)
    : config_(config), layout_(layout), group_(&group), frequencies_(rotary_frequencies(config)) {
  check_layout(layout, group);
  const std::int64_t tp = layout.tp_size;
  const std::int64_t hidden = config.hidden;
  local_heads_ = divide(config.heads, tp, "attention heads");
  // With more ranks than key/value heads, each of those heads is held by several ranks.
  local_kv_heads_ = config.kv_heads >= tp ? divide(config.kv_heads, tp, "key/value heads") : 1;
  if (config.kv_heads < tp) divide(tp, config.kv_heads, "tensor-parallel ranks over key/value heads");
  local_experts_ = divide(config.experts, layout.ep_size, "experts");
  // What pads it is zero and adds nothing.
  const std::int64_t expert_width =
      round_up(divide(config.expert_width, tp / layout.ep_size, "rows of an expert"), layout.inner_unit);
  const std::int64_t vocab_rows = divide(padded_vocabulary(config.vocab), tp, "vocabulary rows");
  const std::int64_t qkv_rows = (local_heads_ + 2 * local_kv_heads_) * config.head_dim;

  Loader load(source);
  embedding_ = load.matrix("model.embed_tokens.weight", vocab_rows, hidden);
  expect_zero_padding(embedding_, layout.tp_rank * vocab_rows, config.vocab, "model.embed_tokens.weight");
  if (!config.tied_embeddings) {
    head_ = load.matrix("lm_head.weight", vocab_rows, hidden);
    expect_zero_padding(head_, layout.tp_rank * vocab_rows, config.vocab, "lm_head.weight");
  }
  final_norm_ = load.vector("model.norm.weight", hidden);

  // Both halves of `w13` and `gate_up` become matrices of their own, so that the arithmetic below has one
  // form.
  const auto halves = [&](const Tensor& fused, std::int64_t first, std::int64_t width, bool up_first) {
    Mlp mlp;
    mlp.gate = cut_rows(fused, first + (up_first ? width : 0), width, hidden);
    mlp.up = cut_rows(fused, first + (up_first ? 0 : width), width, hidden);
    return mlp;
  };
  for (std::int64_t index = 0; index < config.layers; ++index) {
    const std::string prefix = fmt::format("model.layers.{}.", index);
    const std::string attention = prefix + "self_attn.";
    Layer layer;
    layer.input_norm = load.vector(prefix + "input_layernorm.weight", hidden);
    layer.qkv = load.linear(attention + "qkv_proj", qkv_rows, hidden, config.attention_bias);
    layer.q_norm = load.vector(attention + "q_norm.weight", config.head_dim);
    layer.k_norm = load.vector(attention + "k_norm.weight", config.head_dim);
    layer.output =
        load.linear(attention + "o_proj", hidden, local_heads_ * config.head_dim, config.attention_bias);
    layer.post_attention_norm = load.vector(prefix + "post_attention_layernorm.weight", hidden);
    if (config.sparse[static_cast<std::size_t>(index)]) {
      layer.router = load.matrix(prefix + "mlp.gate.weight", config.experts, hidden);
      const Tensor w13 =
          load.read(prefix + "mlp.experts.w13_weight", Shape{local_experts_, 2 * expert_width, hidden});
      const Tensor w2 =
          load.read(prefix + "mlp.experts.w2_weight", Shape{local_experts_, hidden, expert_width});
      for (std::int64_t expert = 0; expert < local_experts_; ++expert) {
        Mlp mlp = halves(w13, expert * 2 * expert_width, expert_width, layout.up_first);
        mlp.down = cut_rows(w2, expert * hidden, hidden, expert_width);
        layer.mlps.push_back(std::move(mlp));
      }
    } else {
      const std::int64_t dense_width = divide(config.dense_width, tp, "rows of a dense MLP");
      const Tensor gate_up = load.read(prefix + "mlp.gate_up_proj.weight", Shape{2 * dense_width, hidden});
      Mlp mlp = halves(gate_up, 0, dense_width, false);  // a dense MLP has its gate first in every engine
      mlp.down = load.matrix(prefix + "mlp.down_proj.weight", hidden, dense_width);
      layer.mlps.push_back(std::move(mlp));
    }
    layers_.push_back(std::move(layer));
  }
  load.expect_all_read();
}

Matrix Model::apply(const Matrix& weight, const Matrix& input) {
  Matrix result(input.rows, weight.rows);
  for (std::int64_t token = 0; token < input.rows; ++token) {
    const auto out = result.row(token);
    for (std::int64_t row = 0; row < weight.rows; ++row) {
      out[static_cast<std::size_t>(row)] = dot(input.row(token), weight.row(row));
    }
  }
  return result;
}

std::vector<float> Model::apply(const Mlp& mlp, const Matrix& input, std::int64_t row) {
  Matrix token(1, input.cols);
  std::ranges::copy(input.row(row), token.values.begin());
  Matrix inner = apply(mlp.gate, token);
  const Matrix up = apply(mlp.up, token);
  for (std::size_t i = 0; i < inner.values.size(); ++i)
    inner.values[i] = silu(inner.values[i]) * up.values[i];
  return std::move(apply(mlp.down, inner).values);
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

Matrix Model::normalize(const Matrix& input, const std::vector<float>& weight) const {
  Matrix result(input.rows, input.cols);
  for (std::int64_t row = 0; row < input.rows; ++row) {
    normalize_to_rms(input.row(row), weight, config_.norm_epsilon, result.row(row));
  }
  return result;
}

void Model::normalize_and_rotate(std::span<float> head, const std::vector<float>& weight,
                                 std::int64_t position) const {
  normalize_to_rms(head, weight, config_.norm_epsilon, head);
  // The rotation pairs element i with element i + d/2.
  const std::size_t half = head.size() / 2;
  for (std::size_t i = 0; i < half; ++i) {
    const float angle = static_cast<float>(position) * frequencies_[i];
    const float cosine = std::cos(angle);
    const float sine = std::sin(angle);
    const float a = head[i];
    const float b = head[i + half];
    head[i] = a * cosine - b * sine;
    head[i + half] = b * cosine + a * sine;
  }
}

Matrix Model::attend(Matrix qkv, const Layer& layer) const {
  const auto dim = static_cast<std::size_t>(config_.head_dim);
  const auto heads = static_cast<std::size_t>(local_heads_);
  const auto kv_heads = static_cast<std::size_t>(local_kv_heads_);
  const auto head_of = [&](auto& matrix, std::int64_t token, std::size_t head) {
    return matrix.row(token).subspan(head * dim, dim);
  };
  for (std::int64_t token = 0; token < qkv.rows; ++token) {
    for (std::size_t head = 0; head < heads + kv_heads; ++head) {
      const auto& weight = head < heads ? layer.q_norm : layer.k_norm;
      normalize_and_rotate(head_of(qkv, token, head), weight, token);
    }
  }
  Matrix result(qkv.rows, static_cast<std::int64_t>(heads * dim));
  const float scale = 1.0F / std::sqrt(static_cast<float>(dim));
  const Matrix& stored = qkv;
  for (std::size_t head = 0; head < heads; ++head) {
    const std::size_t key = heads + head / (heads / kv_heads);
    const std::size_t value = key + kv_heads;
    for (std::int64_t token = 0; token < qkv.rows; ++token) {
      std::vector<float> scores(static_cast<std::size_t>(token) + 1);
      for (std::int64_t past = 0; past <= token; ++past) {
        scores[static_cast<std::size_t>(past)] =
            scale * dot(head_of(stored, token, head), head_of(stored, past, key));
      }
      softmax(scores);
      const auto out = head_of(result, token, head);
      for (std::int64_t past = 0; past <= token; ++past) {
        const auto from = head_of(stored, past, value);
        for (std::size_t i = 0; i < dim; ++i) out[i] += scores[static_cast<std::size_t>(past)] * from[i];
      }
    }
  }
  return result;
}

Matrix Model::run_experts(const Matrix& input, const Layer& layer) const {
  Matrix result(input.rows, input.cols);
  Matrix weights = apply(layer.router, input);
  const std::int64_t first = layout_.ep_rank * local_experts_;
  for (std::int64_t token = 0; token < input.rows; ++token) {
    softmax(weights.row(token));
    const auto chosen = greatest_indices(weights.row(token), config_.experts_per_token);
    float total = 0;
    for (const std::size_t expert : chosen) total += weights.row(token)[expert];
    for (const std::size_t expert : chosen) {
      const std::int64_t local = static_cast<std::int64_t>(expert) - first;
      if (local < 0 || local >= local_experts_) continue;  // another rank holds it
      const float weight = weights.row(token)[expert] / (config_.normalize_top_k ? total : 1.0F);
      const auto out = apply(layer.mlps[static_cast<std::size_t>(local)], input, token);
      const auto sum = result.row(token);
      for (std::size_t i = 0; i < out.size(); ++i) sum[i] += weight * out[i];
    }
  }
  return result;
}

Matrix Model::run_dense(const Matrix& input, const Layer& layer) const {
  Matrix result(input.rows, input.cols);
  for (std::int64_t token = 0; token < input.rows; ++token) {
    std::ranges::copy(apply(layer.mlps.front(), input, token), result.row(token).begin());
  }
  return result;
}

Matrix Model::hidden_states(std::span<const std::int64_t> ids) const {
  Matrix hidden = embed(ids);
  for (std::size_t index = 0; index < layers_.size(); ++index) {
    const Layer& layer = layers_[index];
    Matrix qkv = apply(layer.qkv.weight, normalize(hidden, layer.input_norm));
    add_bias(layer.qkv.bias, qkv);
    Matrix attended = apply(layer.output.weight, attend(std::move(qkv), layer));
    group_->sum(attended.values);
    add_bias(layer.output.bias, attended);  // every rank holds the whole bias, so it joins after the sum
    add(attended, hidden);
    const Matrix normal = normalize(hidden, layer.post_attention_norm);
    Matrix output = config_.sparse[index] ? run_experts(normal, layer) : run_dense(normal, layer);
    group_->sum(output.values);
    add(output, hidden);
  }
  return normalize(hidden, final_norm_);
}

Matrix Model::project_to_vocabulary(const Matrix& hidden) const {
  const Matrix local = apply(config_.tied_embeddings ? embedding_ : head_, hidden);
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
