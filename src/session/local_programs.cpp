#include "session/local_programs.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace weightcast {

namespace {

/// The rows of a move go on where those of `next`, a single one, begin.
bool join(Move& move, const Move& next) {
  const std::int64_t pitch = move.rows == 1 ? next.offset - move.offset : move.pitch;
  const std::int64_t staging_pitch = move.rows == 1 ? next.staging - move.staging : move.staging_pitch;
  if (next.row_bytes != move.row_bytes || pitch <= 0 || staging_pitch <= 0) return false;
  if (next.offset != move.offset + move.rows * pitch) return false;
  if (next.staging != move.staging + move.rows * staging_pitch) return false;
  move.pitch = pitch;
  move.staging_pitch = staging_pitch;
  ++move.rows;
  return true;
}

/// Appends a move that widens what it reads, `wide_bytes` of each row where it writes: where a layout places
/// the rows, in as few moves without one as do the same.
void add_widening(const Move& move, std::int64_t wide_bytes, std::vector<Move>& moves) {
  constexpr std::int64_t kWider = 2;  // times
  if (move.layout.plain()) {
    moves.push_back(move);
    return;
  }
  const std::size_t first = moves.size();
  for (std::int64_t row = 0; row < move.rows; ++row) {
    for (std::int64_t done = 0; done < wide_bytes;) {
      const std::int64_t byte = move.byte + done;
      const std::int64_t bytes = move.layout.run(byte, wide_bytes - done);
      Move next;
      next.op = move.op;
      next.buffer = move.buffer;
      next.offset = move.offset + move.layout.row_offset(move.row + row) + move.layout.byte_offset(byte);
      next.staging = move.staging + row * move.staging_step() + done / kWider;
      next.rows = 1;
      next.row_bytes = bytes / kWider;
      if (moves.size() == first || !join(moves.back(), next)) moves.push_back(next);
      done += bytes;
    }
  }
}

}  // namespace

void add_from_weights(Move move, const Move& from, std::vector<Move>& moves) {
  move.staging = from.offset;
  move.staging_pitch = from.pitch;
  if (from.op != MoveOp::kBF16ToF32) {
    if (adds_one(from.op)) move.op = from.op;
    moves.push_back(move);
    return;
  }
  // Both are where values lie: what would be widened into staging is widened into the parameter.
  const std::int64_t wide_bytes = move.row_bytes;
  move.op = move.op == MoveOp::kNegatedExp ? MoveOp::kNegatedExpOfBF16 : from.op;
  move.row_bytes /= 2;
  add_widening(move, wide_bytes, moves);
}

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
        const std::uint32_t segment = rank_plan.checks[bucket.first_check + i].digest;
        add_from_weights(rank_plan.moves[bucket.first_move + i], place(segment), local.moves);
        local.segments.resize(local.moves.size(), segment);
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
