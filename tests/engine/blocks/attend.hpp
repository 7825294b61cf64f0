#pragma once

#include <cstdint>
#include <span>

#include "engine/matrix.hpp"

namespace weightcast::engine {

/// Who looks at whom, and how.
struct Look {
  std::int64_t heads = 1;
  std::int64_t kv_heads = 1;  ///< consecutive query heads share one
  float scale = 1;
  std::int64_t window = 0;            ///< tokens that are seen, the own one among them; 0: all
  std::span<const float> sinks = {};  ///< of each head, or none: the score of looking at nothing
};

/// Each token's look at itself and at those before it: values [tokens, kv_heads × v], weighted by the softmax
/// of `scale` × query · key of queries [tokens, heads × d] and keys [tokens, kv_heads × d]. Returns
/// [tokens, heads × v].
Matrix attend(const Matrix& queries, const Matrix& keys, const Matrix& values, const Look& look);

/// Head `head` of a token, of a matrix that holds heads of `dim` elements side by side.
std::span<float> head_of(Matrix& matrix, std::int64_t token, std::int64_t head, std::int64_t dim);
std::span<const float> head_of(const Matrix& matrix, std::int64_t token, std::int64_t head, std::int64_t dim);

}  // namespace weightcast::engine
