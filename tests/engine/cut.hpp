#pragma once

#include <map>
#include <string>

#include "engine/engine.hpp"
#include "engine/parameters.hpp"

namespace weightcast::engine {

/// The parameters of one rank, cut from a checkpoint with Hugging Face names. This is the engine's own second
/// opinion on what a rank holds: written straight from the layouts' definition, element by element, and
/// sharing nothing with the product's planner.
std::map<std::string, Tensor> cut_rank(const ModelConfig& config, const RankLayout& layout,
                                       const ParameterSource& checkpoint);

}  // namespace weightcast::engine
