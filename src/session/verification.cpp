#include "session/verification.hpp"

#include <fmt/format.h>

#include "core/error.hpp"
#include "kernels/digest.hpp"

namespace weightcast {

void require_written(const Plan& plan, const Catalog& catalog, const RankPlan& rank_plan,
                     std::span<const std::uint64_t> written, std::span<const std::uint64_t> expected) {
  for (std::size_t i = 0; i < rank_plan.checks.size(); ++i) {
    require_written(plan, catalog, rank_plan, rank_plan.checks[i], written[i], expected);
  }
}

void require_written(const Plan& plan, const Catalog& catalog, const RankPlan& rank_plan,
                     const DigestBox& check, std::uint64_t written, std::span<const std::uint64_t> expected) {
  const std::uint64_t sent = expected[check.digest];
  if (written == (check.widened ? widened_digest(sent) : sent)) return;
  const Segment& segment = plan.segment_of_digest(check.digest);
  throw VerifyError(fmt::format(
      "verify: parameter {} does not hold what was sent of tensor {} ({}); run the update again",
      rank_plan.parameters[check.buffer].name, catalog[segment.tensor].name, segment.box.to_string()));
}

void require_zero_padding(const RankPlan& rank_plan, std::int64_t dirty) {
  if (dirty < 0) return;
  const Move& move = rank_plan.padding[static_cast<std::size_t>(dirty)];
  throw VerifyError(fmt::format("verify: the padding of parameter {} is not zero; run the update again",
                                rank_plan.parameters[move.buffer].name));
}

}  // namespace weightcast
