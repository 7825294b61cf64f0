#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/group.hpp"
#include "engine/model_config.hpp"
#include "engine/parameters.hpp"

/// A small inference engine that checks what transferred weights mean, not what their bytes are. It shares no
/// code with the planner: it reads parameters by name and derives, from the rank's coordinates alone, which
/// heads, experts and rows an inference engine takes them to hold.
namespace weightcast::engine {

/// Which part of the model a rank holds. Within a replica, tp rank = ep rank × (tp / ep) + rank inside the
/// expert.
struct RankLayout {
  std::int64_t tp_rank = 0;
  std::int64_t tp_size = 1;
  std::int64_t ep_rank = 0;
  std::int64_t ep_size = 1;
  bool up_first =
      false;  ///< order of the halves of `w13_weight`: cutlass has up first, triton has gate first
  std::int64_t inner_unit = 1;  ///< to a multiple of which a rank's part of experts is padded
};

/// A row-major matrix.
struct Matrix {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::vector<float> values;

  Matrix() = default;
  Matrix(std::int64_t row_count, std::int64_t col_count)
      : rows(row_count), cols(col_count), values(static_cast<std::size_t>(row_count * col_count)) {}

  std::span<float> row(std::int64_t index) {
    return std::span(values).subspan(static_cast<std::size_t>(index * cols), static_cast<std::size_t>(cols));
  }
  std::span<const float> row(std::int64_t index) const {
    return std::span(values).subspan(static_cast<std::size_t>(index * cols), static_cast<std::size_t>(cols));
  }
};

/// One rank of a Qwen3-MoE model, computed in float32. Every rank of the group constructs one and calls the
/// same methods with the same arguments; every rank gets the whole result.
class Model {
 public:
  /// Reads all parameters. Throws InputError naming the parameter that is missing, has another shape than the
  /// layout implies, holds padding that is not zero, or is unknown to this forward pass.
  Model(const ModelConfig& config, const RankLayout& layout, const ParameterSource& source, Group& group);

  /// Logits [tokens, vocabulary] of a sequence that starts at position 0.
  Matrix logits(std::span<const std::int64_t> ids) const;

  /// The prompt, followed by at most `new_tokens` tokens of greatest logit; an end token is the last one.
  std::vector<std::int64_t> generate(std::span<const std::int64_t> prompt, std::int64_t new_tokens) const;

 private:
  struct Linear {
    Matrix weight;            ///< [out, in]
    std::vector<float> bias;  ///< [out] or empty
  };
  struct Mlp {
    Matrix gate;
    Matrix up;
    Matrix down;
  };
  struct Layer {
    std::vector<float> input_norm;
    Linear qkv;
    std::vector<float> q_norm;
    std::vector<float> k_norm;
    Linear output;
    std::vector<float> post_attention_norm;
    Matrix router;
    std::vector<Mlp> mlps;  ///< the local experts, or the one MLP of a dense layer
  };
  class Loader;

  static Matrix apply(const Matrix& weight, const Matrix& input);
  static std::vector<float> apply(const Mlp& mlp, const Matrix& input, std::int64_t row);

  Matrix embed(std::span<const std::int64_t> ids) const;
  Matrix hidden_states(std::span<const std::int64_t> ids) const;
  Matrix project_to_vocabulary(const Matrix& hidden) const;
  Matrix normalize(const Matrix& input, const std::vector<float>& weight) const;
  void normalize_and_rotate(std::span<float> head, const std::vector<float>& weight,
                            std::int64_t position) const;
  Matrix attend(Matrix qkv, const Layer& layer) const;
  Matrix run_experts(const Matrix& input, const Layer& layer) const;
  Matrix run_dense(const Matrix& input, const Layer& layer) const;

  ModelConfig config_;
  RankLayout layout_;
  Group* group_;
  std::vector<float> frequencies_;  ///< of the rotary embedding
  std::int64_t local_heads_ = 0;
  std::int64_t local_kv_heads_ = 0;
  std::int64_t local_experts_ = 0;
  Matrix embedding_;
  Matrix head_;  ///< empty when the embedding is tied
  std::vector<float> final_norm_;
  std::vector<Layer> layers_;
};

}  // namespace weightcast::engine
