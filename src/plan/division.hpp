#pragma once

#include <cstdint>
#include <vector>

#include "model/catalog.hpp"
#include "plan/routing.hpp"
#include "plan/topology.hpp"

namespace weightcast {

/// Divides the pieces of every destination set among those of `trainers` that hold them, by bytes or as
/// `split` says: result[trainer] holds its pieces, set by set. A set that is divided by bytes is cut at row
/// boundaries, in catalog order. A small set has few roots: those that have the fewest bytes so far. Throws
/// InternalError for a piece that nobody holds.
std::vector<std::vector<Piece>> divide_among_trainers(const Catalog& catalog, const Routing& routing,
                                                      std::int64_t trainers, SourceSplit split);

}  // namespace weightcast
