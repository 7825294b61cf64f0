#include "engine/blocks/latent_split.hpp"

#include <algorithm>
#include <utility>

namespace weightcast::engine {

LatentSplit split_latent(const Matrix& kv_b, std::int64_t nope_dim, std::int64_t value_dim) {
  LatentSplit split;
  for (std::int64_t first = 0; first < kv_b.rows; first += nope_dim + value_dim) {
    Matrix keys(kv_b.cols, nope_dim);
    for (std::int64_t rank = 0; rank < kv_b.cols; ++rank) {
      for (std::int64_t i = 0; i < nope_dim; ++i) {
        keys.row(rank)[static_cast<std::size_t>(i)] = kv_b.row(first + i)[static_cast<std::size_t>(rank)];
      }
    }
    Matrix values(value_dim, kv_b.cols);
    for (std::int64_t i = 0; i < value_dim; ++i) {
      std::ranges::copy(kv_b.row(first + nope_dim + i), values.row(i).begin());
    }
    split.keys.push_back(std::move(keys));
    split.values.push_back(std::move(values));
  }
  return split;
}

}  // namespace weightcast::engine
