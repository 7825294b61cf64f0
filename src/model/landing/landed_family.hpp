#pragma once

#include <memory>

#include "model/family.hpp"
#include "model/landing/landing_map.hpp"

namespace weightcast {

/// The model that a map describes. Its catalog is what some rank reads of the map's tensors, each in the type
/// that parameters want it in; its parameters are those of the map's layout, experts as `EngineLayout` asks
/// for them: as the loader leaves them (`triton`), or `vllm-cpu`. What Megatron trainers hold of it is not
/// known.
///
/// `described` is the same model as a family describes it, or null: checkpoints may then store tensors in the
/// forms that it knows. Throws InputError, naming parameter, rank and both boxes, where the two differ, and
/// for a map with tensors that have to go through the engine's loader.
std::unique_ptr<Family> make_landed_family(std::shared_ptr<const LandingMap> map,
                                           std::unique_ptr<Family> described);

}  // namespace weightcast
