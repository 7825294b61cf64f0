#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/blocks/block.hpp"
#include "engine/loader.hpp"
#include "engine/matrix.hpp"

namespace weightcast::engine {

/// down · (silu(gate · x) × (up · x)), or a rank's part of the inner size of it.
struct GatedMlp {
  Matrix gate;  ///< [inner, hidden]
  Matrix up;    ///< [inner, hidden]
  Matrix down;  ///< [hidden, inner]

  std::vector<float> run(std::span<const float> token) const;
};

/// The halves of a fused parameter that start at row `first`, `inner` rows each, as matrices of their own, so
/// that the arithmetic has one form. `down` is left empty.
GatedMlp halves(const Tensor& fused, std::int64_t first, std::int64_t inner, std::int64_t hidden,
                bool up_first);

/// `MODULE.gate_up_proj.weight` and `MODULE.down_proj.weight` of an MLP whose inner size is cut by tensor
/// parallelism.
GatedMlp load_gated_mlp(const BlockSite& site, const std::string& module, std::int64_t inner);

}  // namespace weightcast::engine
