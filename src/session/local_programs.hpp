#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/executor.hpp"
#include "kernels/move.hpp"
#include "kernels/quant_move.hpp"
#include "plan/rank_plan.hpp"
#include "session/schedule.hpp"

namespace weightcast {

/// What brings a rank's local buckets from its own weights to its own parameters, compiled: the programs that
/// would unpack these buckets from staging, reading the weights themselves instead.
struct LocalPrograms {
  std::vector<Move> moves;                  ///< their staging side is the buffer of the weights
  std::vector<std::uint32_t> segments;      ///< of the plan, by move
  std::vector<ProgramRange> move_programs;  ///< by bucket of the rank plan; empty where it is not local
  std::vector<QuantMove> quants;            ///< their values are in source buffer 0
  std::vector<ProgramRange> quant_programs;
};

/// Appends what `move` does, reading weights in place of staging: `from` is what would pack the same values,
/// its offset and pitch where they lie.
void add_from_weights(Move move, const Move& from, std::vector<Move>& moves);

/// `place(segment)`: where the values of that segment of the plan lie in the weights, as offset and pitch of
/// the move that would pack it.
LocalPrograms compile_local(const RankPlan& rank_plan, const Schedule& schedule,
                            const std::function<Move(std::uint32_t)>& place);

}  // namespace weightcast
