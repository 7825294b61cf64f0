#include "engine/blocks/attend.hpp"

#include <algorithm>
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

Matrix attend(const Matrix& queries, const Matrix& keys, const Matrix& values, const Look& look) {
  const std::int64_t dim = queries.cols / look.heads;
  const std::int64_t value_dim = values.cols / look.kv_heads;
  Matrix result(queries.rows, look.heads * value_dim);
  for (std::int64_t head = 0; head < look.heads; ++head) {
    const std::int64_t shared = head / (look.heads / look.kv_heads);
    for (std::int64_t token = 0; token < queries.rows; ++token) {
      const std::int64_t first = look.window == 0 ? 0 : std::max<std::int64_t>(0, token + 1 - look.window);
      std::vector<float> weights;
      for (std::int64_t past = first; past <= token; ++past) {
        weights.push_back(look.scale *
                          dot(head_of(queries, token, head, dim), head_of(keys, past, shared, dim)));
      }
      if (!look.sinks.empty()) weights.push_back(look.sinks[static_cast<std::size_t>(head)]);
      softmax(weights);
      const auto out = head_of(result, token, head, value_dim);
      for (std::int64_t past = first; past <= token; ++past) {
        const auto value = head_of(values, past, shared, value_dim);
        const float weight = weights[static_cast<std::size_t>(past - first)];
        for (std::size_t i = 0; i < out.size(); ++i) out[i] += weight * value[i];
      }
    }
  }
  return result;
}

}  // namespace weightcast::engine
