#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <utility>
#include <vector>

#include "engine/blocks/attend.hpp"
#include "engine/blocks/block.hpp"

namespace weightcast::engine {
namespace {

constexpr double kLengthEpsilon = 1e-6;

/// The rows of sections, one behind the other, of a matrix in which they take turns: each of `groups` groups
/// has `widths` rows of them.
Matrix ungroup(const Matrix& grouped, std::int64_t groups, std::initializer_list<std::int64_t> widths) {
  Matrix result(grouped.rows, grouped.cols);
  std::int64_t to = 0;
  std::int64_t first = 0;
  for (const std::int64_t width : widths) {
    for (std::int64_t group = 0; group < groups; ++group) {
      for (std::int64_t row = 0; row < width; ++row) {
        const std::int64_t from = group * (grouped.rows / groups) + first + row;
        std::ranges::copy(grouped.row(from), result.row(to++).begin());
      }
    }
    first += width;
  }
  return result;
}

void scale_to_length_one(std::span<float> vector) {
  const auto scale = static_cast<float>(1.0 / std::sqrt(double{dot(vector, vector)} + kLengthEpsilon));
  for (float& value : vector) value *= scale;
}

/// log(1 + exp(x)), also where exp(x) has no value.
float softplus(float x) {
  return std::max(x, 0.0F) + std::log1p(std::exp(-std::abs(x)));
}

class GatedDeltaNet : public Block {
 public:
  explicit GatedDeltaNet(const BlockSite& site) : config_(site.config) {
    const DeltaSizes& sizes = config_.delta;
    const std::int64_t tp = site.layout.tp_size;
    key_heads_ = divide(sizes.key_heads, tp, "key heads of linear attention");
    value_heads_ = divide(sizes.value_heads, tp, "value heads of linear attention");
    const std::int64_t queries = key_heads_ * sizes.key_dim;
    const std::int64_t values = value_heads_ * sizes.value_dim;
    const std::string at = site.layer + "linear_attn.";
    // Qwen3-Next keeps together what belongs to a key head; the arithmetic below has one form.
    const std::int64_t groups = sizes.by_key_head ? key_heads_ : 1;
    input_ = ungroup(site.load.matrix(at + "in_proj_qkvz.weight", 2 * queries + 2 * values, config_.hidden),
                     groups, {queries / groups, queries / groups, values / groups, values / groups});
    gates_ = ungroup(site.load.matrix(at + "in_proj_ba.weight", 2 * value_heads_, config_.hidden), groups,
                     {value_heads_ / groups, value_heads_ / groups});
    const Tensor kernel = site.load.tensor(at + "conv1d.weight", {2 * queries + values, 1, sizes.kernel});
    kernel_ = cut_rows(kernel, 0, 2 * queries + values, sizes.kernel);
    decay_log_ = site.load.vector(at + "A_log", value_heads_);
    step_bias_ = site.load.vector(at + "dt_bias", value_heads_);
    norm_ = site.load.vector(at + "norm.weight", sizes.value_dim);  // this norm does not add one
    output_ = site.load.matrix(at + "out_proj.weight", config_.hidden, values);
  }

  Matrix run(const Matrix& input) const override {
    const DeltaSizes& sizes = config_.delta;
    const Matrix projected = multiply(input_, input);
    const Matrix mixed = convolve(columns(projected, 0, kernel_.rows));
    const Matrix gate = columns(projected, kernel_.rows, value_heads_ * sizes.value_dim);
    const std::int64_t rows = key_heads_ * sizes.key_dim;
    Matrix queries = columns(mixed, 0, rows);
    Matrix keys = columns(mixed, rows, rows);
    for (std::int64_t token = 0; token < input.rows; ++token) {
      for (std::int64_t head = 0; head < key_heads_; ++head) {
        scale_to_length_one(head_of(queries, token, head, sizes.key_dim));
        scale_to_length_one(head_of(keys, token, head, sizes.key_dim));
      }
    }
    const Matrix values = columns(mixed, 2 * rows, gate.cols);
    Matrix seen = remember(queries, keys, values, multiply(gates_, input));
    for (std::int64_t token = 0; token < input.rows; ++token) {
      for (std::int64_t head = 0; head < value_heads_; ++head) {
        const auto of = head_of(seen, token, head, sizes.value_dim);
        const auto gates = head_of(gate, token, head, sizes.value_dim);
        normalize_to_rms(of, norm_, config_.norm_epsilon, of);
        for (std::size_t i = 0; i < of.size(); ++i) of[i] *= silu(gates[i]);
      }
    }
    return multiply(output_, seen);
  }

 private:
  /// Each channel over this token and those before it, the last of the kernel's elements for this one.
  Matrix convolve(const Matrix& input) const {
    Matrix result(input.rows, input.cols);
    for (std::int64_t token = 0; token < input.rows; ++token) {
      for (std::size_t channel = 0; channel < static_cast<std::size_t>(input.cols); ++channel) {
        const auto kernel = kernel_.row(static_cast<std::int64_t>(channel));
        float sum = 0;
        for (std::int64_t back = 0; back < std::min(kernel_.cols, token + 1); ++back) {
          sum += kernel[static_cast<std::size_t>(kernel_.cols - 1 - back)] * input.row(token - back)[channel];
        }
        result.row(token)[channel] = silu(sum);
      }
    }
    return result;
  }

  /// The gated delta rule. For each value head a memory [key_dim, value_dim] fades, is corrected by what it
  /// lacks of the token's value at the token's key, and is then asked with the token's query.
  Matrix remember(const Matrix& queries, const Matrix& keys, const Matrix& values,
                  const Matrix& gates) const {
    const DeltaSizes& sizes = config_.delta;
    const float scale = 1.0F / std::sqrt(static_cast<float>(sizes.key_dim));
    Matrix result(values.rows, values.cols);
    for (std::int64_t head = 0; head < value_heads_; ++head) {
      const auto number = static_cast<std::size_t>(head);
      const std::int64_t key_head = head / (value_heads_ / key_heads_);
      Matrix memory(sizes.key_dim, sizes.value_dim);
      for (std::int64_t token = 0; token < values.rows; ++token) {
        const float strength = sigmoid(gates.row(token)[number]);
        const float step = gates.row(token)[number + static_cast<std::size_t>(value_heads_)];
        const float decay = std::exp(-std::exp(decay_log_[number]) * softplus(step + step_bias_[number]));
        for (float& value : memory.values) value *= decay;
        const auto key = head_of(keys, token, key_head, sizes.key_dim);
        std::vector<float> correction = read(memory, key);
        const auto value = head_of(values, token, head, sizes.value_dim);
        for (std::size_t i = 0; i < value.size(); ++i) correction[i] = strength * (value[i] - correction[i]);
        for (std::int64_t row = 0; row < memory.rows; ++row) {
          const auto to = memory.row(row);
          for (std::size_t i = 0; i < to.size(); ++i) {
            to[i] += key[static_cast<std::size_t>(row)] * correction[i];
          }
        }
        const auto out = head_of(result, token, head, sizes.value_dim);
        std::ranges::copy(read(memory, head_of(queries, token, key_head, sizes.key_dim)), out.begin());
        for (float& element : out) element *= scale;
      }
    }
    return result;
  }

  /// The memory's rows, weighted by a key.
  static std::vector<float> read(const Matrix& memory, std::span<const float> key) {
    std::vector<float> result(static_cast<std::size_t>(memory.cols));
    for (std::int64_t row = 0; row < memory.rows; ++row) {
      const auto from = memory.row(row);
      for (std::size_t i = 0; i < result.size(); ++i) {
        result[i] += key[static_cast<std::size_t>(row)] * from[i];
      }
    }
    return result;
  }

  ModelConfig config_;
  std::int64_t key_heads_ = 0;
  std::int64_t value_heads_ = 0;
  Matrix input_;   ///< to queries, keys, values and the gates of what was read, behind one another
  Matrix gates_;   ///< to the strengths and the steps of the value heads
  Matrix kernel_;  ///< [queries, keys and values, kernel]
  std::vector<float> decay_log_;
  std::vector<float> step_bias_;
  std::vector<float> norm_;
  Matrix output_;
};

}  // namespace

std::unique_ptr<Block> gated_delta_net(const BlockSite& site) {
  return std::make_unique<GatedDeltaNet>(site);
}

}  // namespace weightcast::engine
