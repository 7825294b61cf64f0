#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "kernels/move.hpp"
#include "kernels/quant_move.hpp"
#include "plan/plan.hpp"
#include "plan/rank_plan.hpp"
#include "session/schedule.hpp"

namespace weightcast {

/// What brings a root's direct buckets from its weights into the parameters of all their destinations,
/// compiled. Parameters of several ranks are numbered one behind the other.
struct DirectPrograms {
  std::vector<Move> moves;                  ///< their staging side is the buffer of the weights
  std::vector<ProgramRange> move_programs;  ///< by bucket of the root's rank plan; empty where not direct
  /// The source's own quantiser moves, numbered as there, of what travels as codes: of direct buckets they
  /// write into parameters in place of staging.
  std::vector<QuantMove> codes;
  std::vector<ProgramRange> code_programs;
  /// What else is quantised: where codes go to more than one place, and where the destination would quantise.
  std::vector<QuantMove> quants;
  std::vector<ProgramRange> quant_programs;
};

/// A rank that a root writes to.
struct DirectDestination {
  const RankPlan* rank_plan = nullptr;
  std::uint32_t first_parameter = 0;  ///< the number of its parameter 0
};

/// The source of a root.
struct DirectSource {
  /// Where the values of that segment of the plan lie in the weights: the moves that would pack them, as
  /// ResidentSource::places(); one where they lie in one piece.
  std::function<std::vector<Move>(std::uint32_t)> places;
  std::span<const QuantMove> quants;             ///< Sending::quants
  std::span<const ProgramRange> quant_programs;  ///< of them, by plan bucket
};

/// `mine` is the root's rank plan, `schedule` says which of its buckets are direct; `destinations` are all
/// ranks that receive one of these, the root itself among them where it is one.
DirectPrograms compile_direct(const Plan& plan, const Catalog& catalog, const RankPlan& mine,
                              const Schedule& schedule, std::span<const DirectDestination> destinations,
                              const DirectSource& source);

}  // namespace weightcast
