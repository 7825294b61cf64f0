#include "session/memory_source.hpp"

#include <algorithm>

#include "model/synthetic.hpp"
#include "plan/share.hpp"

namespace weightcast {

std::int64_t MemorySource::bytes_needed(const Plan& plan, const Catalog& catalog, std::int64_t trainer) {
  return held_weights(plan, catalog, trainer).bytes;
}

MemorySource::MemorySource(const Plan& plan, const Catalog& catalog, std::int64_t trainer,
                           std::int64_t version)
    : executor_(make_host_executor()), in_place_(plan.segments.size(), kStaged) {
  const HeldWeights held = held_weights(plan, catalog, trainer);
  memory_ = HostBuffer(held.bytes, "the trainer's parameters");
  for (std::uint32_t number = 0; number < catalog.size(); ++number) {
    const HeldWeights::Rows& rows = held.tensors[number];
    const Tensor& tensor = catalog[number];
    const auto bytes =
        static_cast<std::size_t>((rows.end - rows.row) * tensor.shape.cols() * dtype_bytes(tensor.dtype));
    fill_synthetic(tensor, version, rows.row * tensor.shape.cols(),
                   memory_.span().subspan(static_cast<std::size_t>(rows.offset), bytes));
  }
  programs_ = held_programs(plan, catalog, trainer, held);
  staged_.resize(plan.buckets.size());
  std::size_t most = 0;
  for (std::size_t b = 0; b < plan.buckets.size(); ++b) {
    const Bucket& bucket = plan.buckets[b];
    // A colocated rank unpacks its own buckets from staging, so they have to be there.
    const bool may_stay = !plan.receives(bucket.destinations, trainer);
    const ProgramRange& range = programs_.buckets[b];
    for (std::uint32_t i = 0; i < range.count; ++i) {
      const Move& move = programs_.moves[range.first + i];
      if (may_stay && move.dense() && move.bytes() >= kDirectBytes) {
        in_place_[bucket.first_segment + i] = move.offset;
      } else {
        staged_[b].push_back(move);
      }
    }
    most = std::max<std::size_t>(most, range.count);
  }
  results_.resize(most);
}

std::byte* MemorySource::in_place(std::uint32_t segment) const {
  return in_place_[segment] == kStaged ? nullptr : memory_.data() + in_place_[segment];
}

void MemorySource::pack(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) {
  const std::byte* const base = memory_.data();
  executor_->pack(staged_[bucket], {&base, 1}, staging);
  if (digests.empty()) return;
  const ProgramRange& range = programs_.buckets[bucket];
  const auto boxes = std::span(programs_.boxes).subspan(range.first, range.count);
  executor_->digest(boxes, {&base, 1}, results_);
  for (std::size_t i = 0; i < boxes.size(); ++i) digests[boxes[i].segment] = results_[i];
}

}  // namespace weightcast
