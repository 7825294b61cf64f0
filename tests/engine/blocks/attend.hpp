#pragma once

#include <cstdint>

#include "engine/matrix.hpp"

namespace weightcast::engine {

/// Each token's look at itself and at those before it: values [tokens, kv_heads × v], weighted by the softmax
/// of `scale` × query · key of queries [tokens, heads × d] and keys [tokens, kv_heads × d]. Consecutive query
/// heads share a key/value head. Returns [tokens, heads × v].
Matrix attend(const Matrix& queries, const Matrix& keys, const Matrix& values, std::int64_t heads,
              std::int64_t kv_heads, float scale);

/// Head `head` of a token, of a matrix that holds heads of `dim` elements side by side.
std::span<float> head_of(Matrix& matrix, std::int64_t token, std::int64_t head, std::int64_t dim);
std::span<const float> head_of(const Matrix& matrix, std::int64_t token, std::int64_t head, std::int64_t dim);

}  // namespace weightcast::engine
