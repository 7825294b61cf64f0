#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/blocks/block.hpp"
#include "engine/group.hpp"
#include "engine/layout.hpp"
#include "engine/matrix.hpp"
#include "engine/model_config.hpp"
#include "engine/parameters.hpp"

/// A small inference engine that checks what transferred weights mean, not what their bytes are. It shares no
/// code with the planner: it reads parameters by name and derives, from the rank's coordinates alone, which
/// heads, experts and rows an inference engine takes them to hold.
namespace weightcast::engine {

/// One rank of a model, computed in float32. Every rank of the group constructs one and calls the same
/// methods with the same arguments; every rank gets the whole result.
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
  struct Half {
    std::vector<float> norm;
    std::unique_ptr<Block> block;
  };

  Matrix embed(std::span<const std::int64_t> ids) const;
  Matrix hidden_states(std::span<const std::int64_t> ids) const;
  Matrix project_to_vocabulary(const Matrix& hidden) const;

  ModelConfig config_;
  RankLayout layout_;
  Group* group_;
  Matrix embedding_;
  Matrix head_;               ///< empty when the embedding is tied
  std::vector<Half> halves_;  ///< attention and MLP of each layer in turn
  std::vector<float> final_norm_;
};

}  // namespace weightcast::engine
