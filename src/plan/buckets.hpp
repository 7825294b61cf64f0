#pragma once

#include <vector>

#include "model/catalog.hpp"
#include "plan/plan.hpp"
#include "plan/routing.hpp"

namespace weightcast {

/// Packs each trainer's pieces into buckets of at most `bucket_bytes`, splits what is larger, and appends the
/// buckets to the plan in the global order: one bucket of every root in turn, and roots begin with different
/// destination sets so that they do not all talk to the same ranks at once. Throws UsageError
/// where the buckets would be too many.
void fill_buckets(const Catalog& catalog, const std::vector<std::vector<Piece>>& by_trainer, Plan& plan);

}  // namespace weightcast
