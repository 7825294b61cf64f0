#pragma once

#include <cstdint>
#include <span>

#include "model/catalog.hpp"
#include "plan/plan.hpp"
#include "plan/rank_plan.hpp"

namespace weightcast {

/// Compares what a rank has in its parameters with what was sent: `written` are the digests of the rank
/// plan's checks, `expected` those of the plan. Throws VerifyError naming parameter, tensor and box.
void require_written(const Plan& plan, const Catalog& catalog, const RankPlan& rank_plan,
                     std::span<const std::uint64_t> written, std::span<const std::uint64_t> expected);

/// The same for one check, of which `written` is the digest.
void require_written(const Plan& plan, const Catalog& catalog, const RankPlan& rank_plan,
                     const DigestBox& check, std::uint64_t written, std::span<const std::uint64_t> expected);

/// Throws VerifyError naming the parameter unless `dirty`, the number of the first padding that is not zero,
/// is negative.
void require_zero_padding(const RankPlan& rank_plan, std::int64_t dirty);

}  // namespace weightcast
