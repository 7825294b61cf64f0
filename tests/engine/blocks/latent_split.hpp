#pragma once

#include <cstdint>
#include <vector>

#include "engine/matrix.hpp"

namespace weightcast::engine {

/// What an engine makes of `kv_b_proj` after each update, so that it attends in the latent space. For each
/// head the matrix that takes a query there and the one that takes what was seen back, stored row by row as
/// SGLang's `w_kc` and `w_vc` are stored.
struct LatentSplit {
  std::vector<Matrix> keys;    ///< for each head [kv_rank, nope_dim]
  std::vector<Matrix> values;  ///< for each head [value_dim, kv_rank]
};

/// Of `kv_b` [heads × (nope_dim + value_dim), kv_rank].
LatentSplit split_latent(const Matrix& kv_b, std::int64_t nope_dim, std::int64_t value_dim);

}  // namespace weightcast::engine
