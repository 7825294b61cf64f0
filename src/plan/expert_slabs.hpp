#pragma once

#include <cstdint>
#include <vector>

#include "model/engine.hpp"
#include "model/expert_map.hpp"
#include "model/family.hpp"
#include "model/parameter.hpp"

namespace weightcast {

/// A parameter of a rank in which every expert slot of a layer has one slab: as many bytes, one slab behind
/// the other, and nothing that feeds one lies in another. What a slab holds is said by a hash of everything
/// that feeds it and of where in the slab it goes; slabs of the same hash have the same bytes in every
/// version of the model.
struct SlabParameter {
  std::uint32_t parameter = 0;  ///< of the rank's parameters
  std::int64_t layer = 0;
  std::int64_t elements = 0;          ///< of a slab
  std::vector<std::uint64_t> before;  ///< by slot, under the old map
  std::vector<std::uint64_t> after;   ///< by slot, under the new one
};

/// A rank's parameters, without what feeds them, and those that consist of slabs.
struct RankSlabs {
  std::vector<Parameter> parameters;
  std::vector<SlabParameter> slabs;
};

/// What the rank at `place` has under the maps `from` and `to`, which are of the same layers, experts, slots
/// and ranks. Throws UsageError when a parameter that depends on the map does not consist of slabs, and as
/// Family::parameters().
RankSlabs rank_slabs(const Family& family, const EngineLayout& layout, const ExpertMap& from,
                     const ExpertMap& to, const EngineRank& place);

}  // namespace weightcast
