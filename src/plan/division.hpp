#pragma once

#include <cstdint>
#include <vector>

#include "model/catalog.hpp"
#include "plan/routing.hpp"
#include "plan/topology.hpp"

namespace weightcast {

/// Divides the pieces of every destination set among those of `trainers` that hold them, by bytes or as
/// `split` says: result[trainer] holds its pieces, set by set. Where a set is divided by bytes it is cut at
/// row boundaries in catalog order, and one too small to be worth many roots goes to those that have least so
/// far. Throws InternalError for a piece that nobody holds.
std::vector<std::vector<Piece>> divide_among_trainers(const Catalog& catalog, const Routing& routing,
                                                      std::int64_t trainers, SourceSplit split);

}  // namespace weightcast
