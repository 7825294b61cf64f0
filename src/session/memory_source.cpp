#include "session/memory_source.hpp"

#include <algorithm>

#include "core/hash.hpp"
#include "core/units.hpp"
#include "model/synthetic.hpp"
#include "plan/share.hpp"

namespace weightcast {

namespace {

/// The rows of a tensor that a trainer holds, and where.
struct Held {
  std::int64_t row = 0;
  std::int64_t end = 0;
  std::int64_t offset = 0;
};

struct Holdings {
  std::vector<Held> tensors;
  std::int64_t bytes = 0;
};

std::int64_t row_bytes(const Tensor& tensor) {
  return tensor.shape.cols() * dtype_bytes(tensor.dtype);
}

Holdings holdings_of(const Plan& plan, const Catalog& catalog, std::int64_t trainer) {
  Holdings holdings;
  holdings.tensors.resize(catalog.size());
  for (const Bucket& bucket : plan.buckets) {
    if (bucket.root != trainer) continue;
    for (std::uint32_t i = 0; i < bucket.segments; ++i) {
      const Segment& segment = plan.segments[bucket.first_segment + i];
      Held& held = holdings.tensors[segment.tensor];
      const bool fresh = held.end == 0;
      held.row = fresh ? segment.box.row : std::min(held.row, segment.box.row);
      held.end = std::max(held.end, segment.box.row + segment.box.rows);
    }
  }
  for (std::uint32_t tensor = 0; tensor < catalog.size(); ++tensor) {
    Held& held = holdings.tensors[tensor];
    held.offset = holdings.bytes;
    holdings.bytes += round_up((held.end - held.row) * row_bytes(catalog[tensor]), kSegmentAlignment);
  }
  return holdings;
}

}  // namespace

std::int64_t MemorySource::bytes_needed(const Plan& plan, const Catalog& catalog, std::int64_t trainer) {
  return holdings_of(plan, catalog, trainer).bytes;
}

MemorySource::MemorySource(const Plan& plan, const Catalog& catalog, std::int64_t trainer,
                           std::int64_t version)
    : executor_(make_host_executor()),
      programs_(plan.buckets.size()),
      in_place_(plan.segments.size(), kStaged) {
  const Holdings holdings = holdings_of(plan, catalog, trainer);
  memory_ = HostBuffer(holdings.bytes, "the trainer's parameters");
  for (std::uint32_t number = 0; number < catalog.size(); ++number) {
    const Held& held = holdings.tensors[number];
    const Tensor& tensor = catalog[number];
    const auto bytes = static_cast<std::size_t>((held.end - held.row) * row_bytes(tensor));
    fill_synthetic(tensor, version, held.row * tensor.shape.cols(),
                   memory_.span().subspan(static_cast<std::size_t>(held.offset), bytes));
  }
  std::size_t most = 0;
  for (std::size_t b = 0; b < plan.buckets.size(); ++b) {
    const Bucket& bucket = plan.buckets[b];
    if (bucket.root != trainer) continue;
    // A colocated rank unpacks its own buckets from staging, so they have to be there.
    const bool may_stay = !plan.receives(bucket.destinations, trainer);
    for (std::uint32_t number = bucket.first_segment; number < bucket.first_segment + bucket.segments;
         ++number) {
      const Segment& segment = plan.segments[number];
      const Tensor& tensor = catalog[segment.tensor];
      const Held& held = holdings.tensors[segment.tensor];
      const std::int64_t element = dtype_bytes(tensor.dtype);
      const std::int64_t pitch = row_bytes(tensor);
      const std::int64_t offset =
          held.offset + (segment.box.row - held.row) * pitch + segment.box.col * element;
      const Move move{offset, pitch,        segment.offset, segment.box.rows, segment.box.cols * element,
                      0,      MoveOp::kCopy};
      if (may_stay && move.dense() && move.bytes() >= kDirectBytes) {
        in_place_[number] = offset;
      } else {
        programs_[b].moves.push_back(move);
      }
      programs_[b].boxes.push_back({offset, pitch, segment.box, hash_text(tensor.name), 0, number,
                                    static_cast<std::uint8_t>(element)});
    }
    most = std::max<std::size_t>(most, bucket.segments);
  }
  results_.resize(most);
}

std::byte* MemorySource::in_place(std::uint32_t segment) const {
  return in_place_[segment] == kStaged ? nullptr : memory_.data() + in_place_[segment];
}

void MemorySource::pack(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) {
  const Program& program = programs_[bucket];
  const std::byte* const base = memory_.data();
  executor_->pack(program.moves, {&base, 1}, staging);
  if (digests.empty()) return;
  executor_->digest(program.boxes, {&base, 1}, results_);
  for (std::size_t i = 0; i < program.boxes.size(); ++i) digests[program.boxes[i].segment] = results_[i];
}

}  // namespace weightcast
