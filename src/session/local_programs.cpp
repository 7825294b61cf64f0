#include "session/local_programs.hpp"

#include "core/error.hpp"

namespace weightcast {

LocalPrograms compile_local(const RankPlan& rank_plan, const Schedule& schedule,
                            const std::function<Move(std::uint32_t)>& place) {
  LocalPrograms local;
  const auto size = [](const auto& all) { return static_cast<std::uint32_t>(all.size()); };
  for (std::size_t k = 0; k < rank_plan.buckets.size(); ++k) {
    const std::uint32_t first_move = size(local.moves);
    const std::uint32_t first_quant = size(local.quants);
    if (schedule.local(k)) {
      const RankBucket& bucket = rank_plan.buckets[k];
      for (std::uint32_t i = 0; i < bucket.moves; ++i) {
        const Move from = place(rank_plan.checks[bucket.first_check + i].digest);
        Move& move = local.moves.emplace_back(rank_plan.moves[bucket.first_move + i]);
        move.staging = from.offset;
        move.staging_pitch = from.pitch;
        if (from.op == MoveOp::kBF16ToF32) {
          // Both are where values lie: what would be widened into staging is widened into the parameter.
          if (!move.layout.plain()) {
            throw InternalError("values that a trainer has in a narrower type go where a layout places them");
          }
          move.op = move.op == MoveOp::kNegatedExp ? MoveOp::kNegatedExpOfBF16 : from.op;
          move.row_bytes /= 2;
        }
      }
      for (const QuantMove& quant : rank_plan.quant_program(bucket)) {
        const Move from = place(quant.segment);
        local.quants.emplace_back(quant).values = {Space::kSource, 0, from.offset, from.pitch};
      }
    }
    local.move_programs.push_back({first_move, size(local.moves) - first_move});
    local.quant_programs.push_back({first_quant, size(local.quants) - first_quant});
  }
  return local;
}

}  // namespace weightcast
