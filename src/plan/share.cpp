#include "plan/share.hpp"

#include <fmt/format.h>

#include <utility>

#include "core/error.hpp"
#include "core/hash.hpp"
#include "core/units.hpp"
#include "plan/proof.hpp"

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

void place_parameters(Share& share) {
  for (const Parameter& parameter : share.parameters) {
    share.parameter_offsets.push_back(share.parameter_bytes);
    share.parameter_bytes += round_up(parameter.bytes(), kParameterAlignment);
  }
  for (std::uint32_t number = 0; number < share.parameters.size(); ++number) {
    for (const Padding& padding : share.parameters[number].padding) {
      Move zero{padding.offset, padding.bytes, 0, padding.rows, padding.bytes, number, MoveOp::kZero};
      zero.layout = padding.layout;
      zero.row = padding.row;
      zero.byte = padding.byte;
      share.padding.push_back(zero);
    }
  }
}

/// Appends the move and the check of every part that a segment feeds.
void compile_segment(const Plan& plan, const Catalog& catalog, const PartIndex& parts, std::uint32_t number,
                     Share& share) {
  const Segment& segment = plan.segments[number];
  const Tensor& tensor = catalog[segment.tensor];
  const std::int64_t element = dtype_bytes(tensor.dtype);
  for (const auto& [parameter, part] : parts.of(segment.tensor)) {
    if (part.box.intersect(segment.box).empty()) continue;
    if (!part.box.contains(segment.box)) {
      throw InternalError(
          fmt::format("segment {} of {} is needed only in part", segment.box.to_string(), tensor.name));
    }
    const std::int64_t row = segment.box.row - part.box.row;
    const std::int64_t byte = (segment.box.col - part.box.col) * element;
    const std::int64_t offset = part.offset + (part.layout.plain() ? row * part.pitch + byte : 0);
    Move move{offset,    part.pitch,   segment.offset, segment.box.rows, segment.box.cols * element,
              parameter, MoveOp::kCopy};
    DigestBox check{offset,
                    part.pitch,
                    segment.box,
                    hash_text(tensor.name),
                    parameter,
                    number,
                    static_cast<std::uint8_t>(element)};
    if (!part.layout.plain()) {
      move.layout = check.layout = part.layout;
      move.row = check.row = row;
      move.byte = check.byte = byte;
    }
    share.moves.push_back(move);
    share.checks.push_back(check);
  }
}

/// Appends the messages of a bucket; `mine` has its moves already.
void compile_messages(const Plan& plan, const Catalog& catalog, ShareBucket& mine, Share& share) {
  const Bucket& bucket = plan.buckets[mine.bucket];
  mine.first_message = static_cast<std::uint32_t>(share.messages.size());
  Message together;
  const auto flush = [&] {
    if (together.bytes > 0) share.messages.push_back(together);
    together = {};
  };
  for (std::uint32_t i = 0; i < bucket.segments; ++i) {
    const std::uint32_t number = bucket.first_segment + i;
    const Segment& segment = plan.segments[number];
    const std::int64_t bytes = segment.box.area() * dtype_bytes(catalog[segment.tensor].dtype);
    if (bytes >= kDirectBytes) {
      flush();
      share.messages.push_back({segment.offset, bytes, number, Message::kNone});
      continue;
    }
    if (together.bytes == 0) together.staging = segment.offset;
    together.bytes = segment.offset + bytes - together.staging;
  }
  flush();
  mine.messages = static_cast<std::uint32_t>(share.messages.size()) - mine.first_message;
}

/// Appends moves and checks of a received bucket: first those of what arrives in staging, then those of what
/// arrives where it belongs, which its messages name.
void compile_moves(const Plan& plan, const Catalog& catalog, const PartIndex& parts, ShareBucket& mine,
                   Share& share) {
  const Bucket& bucket = plan.buckets[mine.bucket];
  std::vector<Move> direct_moves;
  std::vector<DigestBox> direct_checks;
  for (std::uint32_t i = 0; i < bucket.segments; ++i) {
    const std::size_t before = share.moves.size();
    compile_segment(plan, catalog, parts, bucket.first_segment + i, share);
    // What a colocated root packs it unpacks from its own staging buffer.
    if (!mine.root && share.moves.size() == before + 1 && share.moves.back().dense() &&
        share.moves.back().bytes() >= kDirectBytes) {
      direct_moves.push_back(share.moves.back());
      direct_checks.push_back(share.checks.back());
      share.moves.pop_back();
      share.checks.pop_back();
    }
  }
  mine.staged_moves = static_cast<std::uint32_t>(share.moves.size()) - mine.first_move;
  // Messages and direct moves are both in segment order.
  std::uint32_t message = mine.first_message;
  for (std::size_t i = 0; i < direct_moves.size(); ++i) {
    while (share.messages[message].segment != direct_checks[i].segment) ++message;
    share.messages[message].move = static_cast<std::uint32_t>(share.moves.size());
    share.moves.push_back(direct_moves[i]);
    share.checks.push_back(direct_checks[i]);
  }
  mine.moves = static_cast<std::uint32_t>(share.moves.size()) - mine.first_move;
}

}  // namespace

Share make_share(const Plan& plan, const Family& family, std::int64_t rank) {
  Share share;
  const Catalog& catalog = family.catalog();
  const auto inference_rank = plan.topology.inference_rank(rank);
  if (inference_rank) {
    share.parameters =
        family.parameters(plan.topology.engine, engine_rank(plan.topology.engine, *inference_rank));
  }
  place_parameters(share);
  const PartIndex parts(share.parameters, catalog.size());
  std::int64_t passed = 0;
  for (std::uint32_t number = 0; number < plan.buckets.size(); ++number) {
    const Bucket& bucket = plan.buckets[number];
    passed += bucket.bytes;
    ShareBucket mine;
    mine.bucket = number;
    mine.root = plan.topology.trainer(rank) == bucket.root;
    mine.destination = plan.receives(bucket.destinations, rank);
    mine.first_move = static_cast<std::uint32_t>(share.moves.size());
    if (!mine.root && !mine.destination) continue;
    compile_messages(plan, catalog, mine, share);
    if (mine.destination) compile_moves(plan, catalog, parts, mine, share);
    mine.progress_bytes = std::exchange(passed, 0);
    share.buckets.push_back(mine);
  }
  std::vector<Move> all = share.moves;
  all.insert(all.end(), share.padding.begin(), share.padding.end());
  prove_written_once(share.parameters, all);
  return share;
}

}  // namespace weightcast
