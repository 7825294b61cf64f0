#include "plan/sending.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.hpp"
#include "plan/quantizing.hpp"

namespace weightcast {

namespace {

class SendingCompiler {
 public:
  SendingCompiler(const Plan& plan, const Catalog& catalog, std::int64_t trainer, const HeldWeights& held)
      : plan_(plan), catalog_(catalog), trainer_(trainer), held_(held) {
    sending_.buckets.resize(plan.buckets.size());
    sending_.direct.resize(plan.segments.size());
  }

  Sending compile() {
    for (std::size_t b = 0; b < plan_.buckets.size(); ++b) {
      if (plan_.buckets[b].root == trainer_) add_bucket(plan_.buckets[b], sending_.buckets[b]);
    }
    return std::move(sending_);
  }

 private:
  template <typename Entry>
  static ProgramRange from(const std::vector<Entry>& list, std::size_t first) {
    return {static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(list.size() - first)};
  }

  void add_bucket(const Bucket& bucket, Sending::Ranges& ranges) {
    const std::size_t moves = sending_.moves.size();
    const std::size_t quants = sending_.quants.size();
    const std::size_t boxes = sending_.boxes.size();
    direct_moves_.clear();
    direct_segments_.clear();
    for (std::uint32_t i = 0; i < bucket.segments; ++i) add_segment(bucket, bucket.first_segment + i);
    ranges.staged = from(sending_.moves, moves);
    sending_.moves.insert(sending_.moves.end(), direct_moves_.begin(), direct_moves_.end());
    sending_.segments.insert(sending_.segments.end(), direct_segments_.begin(), direct_segments_.end());
    ranges.moves = from(sending_.moves, moves);
    ranges.quants = from(sending_.quants, quants);
    ranges.boxes = from(sending_.boxes, boxes);
  }

  void add_segment(const Bucket& bucket, std::uint32_t number) {
    const Segment& segment = plan_.segments[number];
    const WireForm& form = plan_.wire[segment.tensor];
    std::int64_t held = 0;
    for (const HeldBox& box : held_.of(segment.tensor)) {
      const Box part = box.box.intersect(segment.box);
      if (part.empty()) continue;
      held += part.area();
      if (form.quantized() && part != segment.box) {
        throw UsageError(fmt::format(
            "{}: a trainer holds {} of it in several pieces, which --quantize cannot take; choose another "
            "--quantize, or --quantize-at destination with whole tensors",
            catalog_[segment.tensor].name, segment.box.to_string()));
      }
      add_part(bucket, number, box, part);
    }
    if (held != segment.box.area()) {
      throw InternalError(fmt::format("trainer {} does not hold all of {} {}", trainer_,
                                      catalog_[segment.tensor].name, segment.box.to_string()));
    }
  }

  /// The part of a segment that lies in one held box.
  void add_part(const Bucket& bucket, std::uint32_t number, const HeldBox& held, const Box& part) {
    const Segment& segment = plan_.segments[number];
    const Tensor& tensor = catalog_[segment.tensor];
    const WireForm& form = plan_.wire[segment.tensor];
    const std::int64_t element = held.narrow ? 2 : dtype_bytes(tensor.dtype);
    const std::int64_t offset = held.at(part.row, part.col, element);
    const auto quant = [&] {
      QuantMove move = quant_move(plan_, catalog_, number, part);
      move.values = {Space::kSource, held.buffer, offset, held.pitch};
      return move;
    };
    const auto send_values = [&](const ValuesForm&) {
      add_move(bucket, number, held, part, offset);
      if (form.quantized()) {
        // Its digests are of what the receiver makes of it.
        sending_.quants.push_back(quant());
      } else {
        DigestBox& box =
            sending_.boxes.emplace_back(DigestBox{offset, held.pitch, part, plane_key(tensor, Plane::kValues),
                                                  held.buffer, number, static_cast<std::uint8_t>(element)});
        box.negated_exp = form.negated_exp;
        box.widened = held.narrow && !form.negated_exp;  // −e^x is float32 of either type
        box.one_more = held.less_one;
      }
    };
    const auto send_codes = [&](const CodesForm& codes) {
      QuantMove move = quant();
      move.codes = staged_codes(codes, segment);
      move.scales = staged_scales(codes, segment);
      sending_.quants.push_back(move);
    };
    std::visit(Overloaded{send_values, send_codes}, form.kind);
  }

  /// Packs the values of a part, which lie in a held box's buffer from byte `offset` on.
  void add_move(const Bucket& bucket, std::uint32_t number, const HeldBox& held, const Box& part,
                std::int64_t offset) {
    const Segment& segment = plan_.segments[number];
    const std::int64_t element = dtype_bytes(catalog_[segment.tensor].dtype);
    const std::int64_t segment_pitch = segment.box.cols * element;
    Move move{offset, held.pitch, segment.offset, part.rows, part.cols * element, held.buffer, MoveOp::kCopy};
    move.staging += (part.row - segment.box.row) * segment_pitch + (part.col - segment.box.col) * element;
    if (part.cols != segment.box.cols) move.staging_pitch = segment_pitch;
    if (held.narrow) move.op = MoveOp::kBF16ToF32;
    if (held.less_one) move.op = element == 2 ? MoveOp::kOneMoreBF16 : MoveOp::kOneMoreF32;
    const bool direct = part == segment.box && bypasses_staging(plan_, bucket, trainer_, move);
    if (direct) sending_.direct[number] = Sending::Direct{held.buffer, offset};
    (direct ? direct_moves_ : sending_.moves).push_back(move);
    (direct ? direct_segments_ : sending_.segments).push_back(number);
  }

  const Plan& plan_;
  const Catalog& catalog_;
  std::int64_t trainer_;
  const HeldWeights& held_;
  Sending sending_;
  std::vector<Move> direct_moves_;  ///< of the bucket at hand
  std::vector<std::uint32_t> direct_segments_;
};

}  // namespace

Sending compile_sending(const Plan& plan, const Catalog& catalog, std::int64_t trainer,
                        const HeldWeights& held) {
  return SendingCompiler(plan, catalog, trainer, held).compile();
}

bool bypasses_staging(const Plan& plan, const Bucket& bucket, std::int64_t world_rank, const Move& move) {
  const bool root = plan.topology.trainer(world_rank) == bucket.root;
  return move.dense() && move.bytes() >= kDirectBytes &&
         !(root && plan.receives(bucket.destinations, world_rank));
}

}  // namespace weightcast
