#include "plan/rank_plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/error.hpp"
#include "core/units.hpp"
#include "plan/proof.hpp"
#include "plan/quantizing.hpp"
#include "plan/sending.hpp"

namespace weightcast {

namespace {

struct PartOf {
  std::uint32_t parameter = 0;
  Part part;
};

/// The parts that a tensor feeds, by tensor.
class PartIndex {
 public:
  PartIndex(const std::vector<Parameter>& parameters, std::size_t tensors) : starts_(tensors + 1, 0) {
    for (const Parameter& parameter : parameters) {
      for (const Part& part : parameter.parts) ++starts_[part.tensor + 1];
    }
    for (std::size_t i = 1; i < starts_.size(); ++i) starts_[i] += starts_[i - 1];
    parts_.resize(starts_.back());
    std::vector<std::size_t> next(starts_.begin(), starts_.end() - 1);
    for (std::uint32_t number = 0; number < parameters.size(); ++number) {
      for (const Part& part : parameters[number].parts) parts_[next[part.tensor]++] = {number, part};
    }
  }

  std::span<const PartOf> of(std::uint32_t tensor) const {
    return std::span(parts_).subspan(starts_[tensor], starts_[tensor + 1] - starts_[tensor]);
  }

 private:
  std::vector<std::size_t> starts_;
  std::vector<PartOf> parts_;
};

Move zero(const Padding& padding, std::uint32_t parameter) {
  Move move{padding.offset, padding.bytes, 0, padding.rows, padding.bytes, parameter, MoveOp::kZero};
  move.layout = padding.layout;
  move.row = padding.row;
  move.byte = padding.byte;
  return move;
}

void place_parameters(RankPlan& rank_plan) {
  for (const Parameter& parameter : rank_plan.parameters) {
    rank_plan.parameter_offsets.push_back(rank_plan.parameter_bytes);
    rank_plan.parameter_bytes += round_up(parameter.bytes(), kParameterAlignment);
  }
  for (std::uint32_t number = 0; number < rank_plan.parameters.size(); ++number) {
    for (const Padding& padding : rank_plan.parameters[number].padding) {
      rank_plan.padding.push_back(zero(padding, number));
    }
  }
}

/// Where a part has what belongs to `box`, a box of its tensor's values.
MatrixPlace place_of(const Part& part, std::uint32_t parameter, std::int64_t element, const Box& box) {
  const Box inner = part.form.of(box);
  const Box outer = part.form.of(part.box);
  const std::int64_t row = inner.row - outer.row;
  const std::int64_t byte = (inner.col - outer.col) * element;
  MatrixPlace place{Space::kParameter, parameter, part.offset, part.pitch, part.layout};
  if (part.layout.plain()) {
    place.offset += row * part.pitch + byte;
  } else {
    place.row = row;
    place.byte = byte;
  }
  return place;
}

/// The bytes of a place as the buffer's side of a move.
Move as_move(const MatrixPlace& place, std::int64_t rows, std::int64_t row_bytes) {
  Move move{place.offset, place.pitch, 0, rows, row_bytes, place.buffer, MoveOp::kCopy};
  move.layout = place.layout;
  move.row = place.row;
  move.byte = place.byte;
  return move;
}

/// Compiles what arrives on one rank.
class Compiler {
 public:
  Compiler(const Plan& plan, const Catalog& catalog, const PartIndex& parts, RankPlan& rank_plan)
      : plan_(plan), catalog_(catalog), parts_(parts), rank_plan_(rank_plan) {}

  /// Appends what every part that a segment feeds takes from it; checks of what is quantised here go to
  /// `checks_of_quants`.
  void add(std::uint32_t number, std::vector<DigestBox>& checks_of_quants) {
    const Segment& segment = plan_.segments[number];
    const WireForm& form = plan_.wire[segment.tensor];
    codes_.clear();
    scales_.clear();
    for (const PartOf& part : parts_.of(segment.tensor)) {
      if (part.part.box.intersect(segment.box).empty()) continue;
      if (!part.part.box.contains(segment.box)) {
        throw InternalError(fmt::format("segment {} of {} is needed only in part", segment.box.to_string(),
                                        catalog_[segment.tensor].name));
      }
      (part.part.form.plane == Plane::kScales ? scales_ : codes_).push_back(&part);
    }
    const auto same_box = [](const PartOf* a, const PartOf* b) { return a->part.box == b->part.box; };
    if (form.kept && form.kept->scale_bytes > 0 &&
        !std::equal(codes_.begin(), codes_.end(), scales_.begin(), scales_.end(), same_box)) {
      throw InternalError(fmt::format("{} feeds {} parameters of codes and {} of scales, or others of it",
                                      catalog_[segment.tensor].name, codes_.size(), scales_.size()));
    }
    const auto take_values = [&](const ValuesForm&) {
      for (std::size_t i = 0; i < codes_.size(); ++i) {
        if (form.quantized()) {
          quantize(number, *codes_[i], i < scales_.size() ? scales_[i] : nullptr, checks_of_quants);
        } else {
          copy(number, *codes_[i], segment.offset);
        }
      }
    };
    const auto take_codes = [&](const CodesForm& codes) {
      const std::int64_t scales = segment.offset + codes.scales_offset(segment.box);
      for (const PartOf* part : codes_) copy(number, *part, segment.offset);
      for (const PartOf* part : scales_) copy(number, *part, scales);
    };
    std::visit(Overloaded{take_values, take_codes}, form.kind);
  }

 private:
  std::int64_t element_of(const PartOf& part) const {
    return dtype_bytes(rank_plan_.parameters[part.parameter].dtype);
  }

  bool widened(const PartOf& part) const {
    return widens(catalog_, rank_plan_.parameters[part.parameter], part.part);
  }

  void copy(std::uint32_t number, const PartOf& part, std::int64_t staging) {
    const Segment& segment = plan_.segments[number];
    const std::int64_t element = element_of(part);
    const MatrixPlace place = place_of(part.part, part.parameter, element, segment.box);
    const Box box = part.part.form.of(segment.box);
    Move move = as_move(place, box.rows, box.cols * element);
    move.staging = staging;
    if (part.part.negated_exp != plan_.wire[segment.tensor].negated_exp) {
      throw InternalError(fmt::format("{} feeds parameters with its values and with −e^x of them",
                                      catalog_[segment.tensor].name));
    }
    if (part.part.negated_exp) move.op = MoveOp::kNegatedExp;
    if (widened(part)) {
      if (!place.layout.plain()) {
        throw InternalError(fmt::format("parameter {} is laid out and of a wider type than {}",
                                        rank_plan_.parameters[part.parameter].name,
                                        catalog_[segment.tensor].name));
      }
      move.op = MoveOp::kBF16ToF32;
      move.row_bytes /= 2;
    }
    rank_plan_.moves.push_back(move);
    rank_plan_.checks.push_back(check(number, part, place));
  }

  void quantize(std::uint32_t number, const PartOf& codes, const PartOf* scales,
                std::vector<DigestBox>& checks) {
    const Segment& segment = plan_.segments[number];
    QuantMove move = quant_move(plan_, catalog_, number, segment.box);
    move.values = {Space::kStaging, 0, segment.offset,
                   segment.box.cols * dtype_bytes(catalog_[segment.tensor].dtype)};
    move.codes = place_of(codes.part, codes.parameter, element_of(codes), segment.box);
    checks.push_back(check(number, codes, move.codes));
    if (scales != nullptr) {
      move.scales = place_of(scales->part, scales->parameter, element_of(*scales), segment.box);
      checks.push_back(check(number, *scales, move.scales));
    }
    rank_plan_.quants.push_back(move);
  }

  DigestBox check(std::uint32_t number, const PartOf& part, const MatrixPlace& place) const {
    const Segment& segment = plan_.segments[number];
    const Plane plane = part.part.form.plane;
    const bool scales = plane == Plane::kScales;
    DigestBox check{place.offset,
                    place.pitch,
                    part.part.form.of(segment.box),
                    plane_key(catalog_[segment.tensor], plane),
                    part.parameter,
                    number + (scales ? static_cast<std::uint32_t>(plan_.segments.size()) : 0),
                    static_cast<std::uint8_t>(element_of(part))};
    check.widened = widened(part);
    check.layout = place.layout;
    check.row = place.row;
    check.byte = place.byte;
    return check;
  }

  const Plan& plan_;
  const Catalog& catalog_;
  const PartIndex& parts_;
  RankPlan& rank_plan_;
  std::vector<const PartOf*> codes_;  ///< or values
  std::vector<const PartOf*> scales_;
};

/// Appends the messages of a bucket; `mine` has its moves already.
void compile_messages(const Plan& plan, RankBucket& mine, RankPlan& rank_plan) {
  const Bucket& bucket = plan.buckets[mine.bucket];
  mine.first_message = static_cast<std::uint32_t>(rank_plan.messages.size());
  Message together;
  const auto flush = [&] {
    if (together.bytes > 0) rank_plan.messages.push_back(together);
    together = {};
  };
  for (std::uint32_t i = 0; i < bucket.segments; ++i) {
    const std::uint32_t number = bucket.first_segment + i;
    const Segment& segment = plan.segments[number];
    const std::int64_t bytes = plan.segment_bytes(segment);
    if (bytes >= kDirectBytes) {
      flush();
      rank_plan.messages.push_back({segment.offset, bytes, number, Message::kNone});
      continue;
    }
    if (together.bytes == 0) together.staging = segment.offset;
    together.bytes = segment.offset + bytes - together.staging;
  }
  flush();
  mine.messages = static_cast<std::uint32_t>(rank_plan.messages.size()) - mine.first_message;
}

/// Appends moves and checks of a received bucket: first those of what arrives in staging, then those of what
/// arrives where it belongs, which its messages name; then what is quantised.
void compile_moves(const Plan& plan, std::int64_t rank, Compiler& compiler, RankBucket& mine,
                   RankPlan& rank_plan) {
  const Bucket& bucket = plan.buckets[mine.bucket];
  mine.first_check = static_cast<std::uint32_t>(rank_plan.checks.size());
  mine.first_quant = static_cast<std::uint32_t>(rank_plan.quants.size());
  std::vector<Move> direct_moves;
  std::vector<DigestBox> direct_checks;
  std::vector<DigestBox> checks_of_quants;
  for (std::uint32_t i = 0; i < bucket.segments; ++i) {
    const std::size_t before = rank_plan.moves.size();
    compiler.add(bucket.first_segment + i, checks_of_quants);
    if (rank_plan.moves.size() == before + 1 &&
        bypasses_staging(plan, bucket, rank, rank_plan.moves.back())) {
      direct_moves.push_back(rank_plan.moves.back());
      direct_checks.push_back(rank_plan.checks.back());
      rank_plan.moves.pop_back();
      rank_plan.checks.pop_back();
    }
  }
  mine.staged_moves = static_cast<std::uint32_t>(rank_plan.moves.size()) - mine.first_move;
  // Messages and direct moves are both in segment order.
  std::uint32_t message = mine.first_message;
  for (std::size_t i = 0; i < direct_moves.size(); ++i) {
    while (rank_plan.messages[message].segment != direct_checks[i].digest) ++message;
    rank_plan.messages[message].move = static_cast<std::uint32_t>(rank_plan.moves.size());
    rank_plan.moves.push_back(direct_moves[i]);
    rank_plan.checks.push_back(direct_checks[i]);
  }
  rank_plan.checks.insert(rank_plan.checks.end(), checks_of_quants.begin(), checks_of_quants.end());
  mine.moves = static_cast<std::uint32_t>(rank_plan.moves.size()) - mine.first_move;
  mine.quants = static_cast<std::uint32_t>(rank_plan.quants.size()) - mine.first_quant;
  mine.checks = static_cast<std::uint32_t>(rank_plan.checks.size()) - mine.first_check;
}

/// Everything that writes to the parameters, and in place of a write what an update leaves as it is.
std::vector<Move> all_writes(const RankPlan& rank_plan) {
  std::vector<Move> all = rank_plan.moves;
  for (Move& move : all) {
    if (move.op == MoveOp::kBF16ToF32) move.row_bytes *= 2;
    move.op = MoveOp::kCopy;
  }
  all.insert(all.end(), rank_plan.padding.begin(), rank_plan.padding.end());
  for (const QuantMove& quant : rank_plan.quants) {
    all.push_back(as_move(quant.codes, quant.codes_box.rows, quant.codes_box.cols));
    if (quant.scales.space == Space::kNowhere) continue;
    all.push_back(as_move(quant.scales, quant.scales_box.rows, quant.scales_box.cols * quant.scale_bytes));
  }
  for (std::uint32_t number = 0; number < rank_plan.parameters.size(); ++number) {
    for (const Padding& untouched : rank_plan.parameters[number].untouched)
      all.push_back(zero(untouched, number));
    for (const Scalar& scalar : rank_plan.parameters[number].scalars) {
      all.push_back({scalar.offset, 4, 0, 1, 4, number, MoveOp::kCopy});
    }
  }
  return all;
}

}  // namespace

RankPlan make_rank_plan(const Plan& plan, const Family& family, std::int64_t rank) {
  RankPlan rank_plan;
  const Catalog& catalog = family.catalog();
  const auto inference_rank = plan.topology.inference_rank(rank);
  if (inference_rank) {
    rank_plan.parameters =
        family.parameters(plan.topology.engine, engine_rank(plan.topology.engine, *inference_rank));
  }
  place_parameters(rank_plan);
  const PartIndex parts(rank_plan.parameters, catalog.size());
  Compiler compiler(plan, catalog, parts, rank_plan);
  std::int64_t passed = 0;
  for (std::uint32_t number = 0; number < plan.buckets.size(); ++number) {
    const Bucket& bucket = plan.buckets[number];
    passed += bucket.bytes;
    RankBucket mine;
    mine.bucket = number;
    mine.root = plan.topology.trainer(rank) == bucket.root;
    mine.destination = plan.receives(bucket.destinations, rank);
    mine.first_move = static_cast<std::uint32_t>(rank_plan.moves.size());
    if (!mine.root && !mine.destination) continue;
    compile_messages(plan, mine, rank_plan);
    if (mine.destination) compile_moves(plan, rank, compiler, mine, rank_plan);
    mine.progress_bytes = std::exchange(passed, 0);
    rank_plan.buckets.push_back(mine);
  }
  prove_written_once(rank_plan.parameters, all_writes(rank_plan));
  return rank_plan;
}

}  // namespace weightcast
