#include "engine/blocks/attend.hpp"

#include <span>
#include <vector>

namespace weightcast::engine {

std::span<float> head_of(Matrix& matrix, std::int64_t token, std::int64_t head, std::int64_t dim) {
  return matrix.row(token).subspan(static_cast<std::size_t>(head * dim), static_cast<std::size_t>(dim));
}

std::span<const float> head_of(const Matrix& matrix, std::int64_t token, std::int64_t head,
                               std::int64_t dim) {
  return matrix.row(token).subspan(static_cast<std::size_t>(head * dim), static_cast<std::size_t>(dim));
}

Matrix attend(const Matrix& queries, const Matrix& keys, const Matrix& values, std::int64_t heads,
              std::int64_t kv_heads, float scale) {
  const std::int64_t dim = queries.cols / heads;
  const std::int64_t value_dim = values.cols / kv_heads;
  Matrix result(queries.rows, heads * value_dim);
  for (std::int64_t head = 0; head < heads; ++head) {
    const std::int64_t shared = head / (heads / kv_heads);
    for (std::int64_t token = 0; token < queries.rows; ++token) {
      std::vector<float> weights;
      for (std::int64_t past = 0; past <= token; ++past) {
        weights.push_back(scale * dot(head_of(queries, token, head, dim), head_of(keys, past, shared, dim)));
      }
      softmax(weights);
      const auto out = head_of(result, token, head, value_dim);
      for (std::int64_t past = 0; past <= token; ++past) {
        const auto value = head_of(values, past, shared, value_dim);
        const float weight = weights[static_cast<std::size_t>(past)];
        for (std::size_t i = 0; i < out.size(); ++i) out[i] += weight * value[i];
      }
    }
  }
  return result;
}

}  // namespace weightcast::engine
