#include "session/direct_programs.hpp"

#include <algorithm>
#include <map>
#include <optional>

#include "core/error.hpp"
#include "session/local_programs.hpp"

namespace weightcast {

namespace {

/// What `move` does with the part of a segment that `piece` would pack; `segment_pitch` is the bytes of a row
/// of the segment.
Move part_of(Move move, const Move& piece, const Segment& segment, std::int64_t segment_pitch) {
  const std::int64_t at = piece.staging - segment.offset;
  const std::int64_t row = at / segment_pitch;
  const std::int64_t byte = at % segment_pitch;
  const std::int64_t wider = move.op == MoveOp::kBF16ToF32 ? 2 : 1;
  move.rows = piece.rows;
  move.row_bytes = piece.row_bytes;
  if (move.layout.plain()) {
    move.offset += row * move.pitch + byte * wider;
  } else {
    move.row += row;
    move.byte += byte;
  }
  return move;
}

MatrixPlace place_of(const Move& move) {
  return {Space::kParameter, move.buffer, move.offset, move.pitch, move.layout, move.row, move.byte};
}

class DirectCompiler {
 public:
  DirectCompiler(const Plan& plan, const Catalog& catalog, const DirectSource& source)
      : plan_(plan), catalog_(catalog), source_(source), taken_(source.quants.size(), false) {
    for (const QuantMove& quant : source.quants) {
      QuantMove& move = programs_.codes.emplace_back(quant);
      move.codes = {};
      move.scales = {};
    }
  }

  DirectPrograms compile(const RankPlan& mine, const Schedule& schedule,
                         std::span<const DirectDestination> destinations) {
    for (std::size_t k = 0; k < mine.buckets.size(); ++k) {
      const std::size_t moves = programs_.moves.size();
      const std::size_t quants = programs_.quants.size();
      ProgramRange codes;
      if (schedule.direct(k) && mine.buckets[k].root) {
        const std::uint32_t bucket = mine.buckets[k].bucket;
        codes = source_.quant_programs[bucket];
        for (const DirectDestination& destination : destinations) add(bucket, destination);
        // What several ranks need is read from memory once, and from the cache by those that come after.
        std::stable_sort(programs_.moves.begin() + static_cast<std::ptrdiff_t>(moves), programs_.moves.end(),
                         [](const Move& a, const Move& b) { return a.staging < b.staging; });
      }
      programs_.move_programs.push_back(from(programs_.moves, moves));
      programs_.code_programs.push_back(codes);
      programs_.quant_programs.push_back(from(programs_.quants, quants));
    }
    return std::move(programs_);
  }

 private:
  template <typename Entry>
  static ProgramRange from(const std::vector<Entry>& list, std::size_t first) {
    return {static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(list.size() - first)};
  }

  /// What one destination takes of a bucket.
  void add(std::uint32_t number, const DirectDestination& destination) {
    const RankPlan& theirs = *destination.rank_plan;
    const auto found = std::ranges::lower_bound(theirs.buckets, number, {}, &RankBucket::bucket);
    if (found == theirs.buckets.end() || found->bucket != number || !found->destination) return;
    const RankBucket& bucket = *found;
    first_parameter_ = destination.first_parameter;
    std::map<std::uint32_t, Planes> planes;
    for (std::uint32_t i = 0; i < bucket.moves; ++i) {
      Move move = theirs.moves[bucket.first_move + i];
      move.buffer += first_parameter_;
      const std::uint32_t digest = theirs.checks[bucket.first_check + i].digest;
      const auto segment = static_cast<std::uint32_t>(digest % plan_.segments.size());
      if (plan_.wire[plan_.segments[segment].tensor].travels_as_held()) {
        add_values(segment, move);
        continue;
      }
      Planes& of_segment = planes[segment];
      (digest == segment ? of_segment.codes : of_segment.scales).push_back(place_of(move));
    }
    for (const auto& [segment, places] : planes) add_codes(number, segment, places);
    for (const QuantMove& quant : theirs.quant_program(bucket)) add_quant(quant);
  }

  void add_values(std::uint32_t number, const Move& move) {
    const Segment& segment = plan_.segments[number];
    const std::int64_t pitch = segment.box.cols * dtype_bytes(catalog_[segment.tensor].dtype);
    for (const Move& piece : source_.places(number)) {
      add_from_weights(part_of(move, piece, segment, pitch), piece, programs_.moves);
    }
  }

  /// Where a rank has the codes of a segment, and their scales, place by place.
  struct Planes {
    std::vector<MatrixPlace> codes;
    std::vector<MatrixPlace> scales;
  };

  void add_codes(std::uint32_t bucket, std::uint32_t segment, const Planes& planes) {
    const ProgramRange range = source_.quant_programs[bucket];
    std::uint32_t quant = range.first;
    while (quant < range.first + range.count && source_.quants[quant].segment != segment) ++quant;
    if (quant == range.first + range.count) throw InternalError("codes that nobody makes");
    for (std::size_t i = 0; i < planes.codes.size(); ++i) {
      QuantMove move = programs_.codes[quant];
      move.codes = planes.codes[i];
      move.scales = i < planes.scales.size() ? planes.scales[i] : MatrixPlace{};
      if (taken_[quant]) {
        programs_.quants.push_back(move);
      } else {
        programs_.codes[quant] = move;
      }
      taken_[quant] = true;
    }
  }

  /// What a rank would quantise when it arrives.
  void add_quant(QuantMove quant) {
    const std::vector<Move> places = source_.places(quant.segment);
    if (places.size() != 1) throw InternalError("values to quantise that lie in several pieces");
    quant.values = {Space::kSource, 0, places.front().offset, places.front().pitch};
    quant.codes.buffer += first_parameter_;
    quant.scales.buffer += first_parameter_;
    programs_.quants.push_back(quant);
  }

  const Plan& plan_;
  const Catalog& catalog_;
  const DirectSource& source_;
  DirectPrograms programs_;
  std::vector<bool> taken_;  ///< by quantiser move of the source: it writes somewhere
  std::uint32_t first_parameter_ = 0;
};

}  // namespace

DirectPrograms compile_direct(const Plan& plan, const Catalog& catalog, const RankPlan& mine,
                              const Schedule& schedule, std::span<const DirectDestination> destinations,
                              const DirectSource& source) {
  return DirectCompiler(plan, catalog, source).compile(mine, schedule, destinations);
}

}  // namespace weightcast
