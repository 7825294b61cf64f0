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
    : plan_(plan), executor_(make_host_executor()), in_place_(plan.segments.size(), kStaged) {
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
  // Room for the digests of the largest bucket: an update allocates nothing.
  std::uint32_t boxes = 0;
  std::uint32_t quants = 0;
  for (const HeldPrograms::Ranges& ranges : programs_.buckets) {
    boxes = std::max(boxes, ranges.boxes.count);
    quants = std::max(quants, ranges.quants.count);
  }
  results_.resize(boxes);
  quant_results_.resize(quants);
  for (std::size_t b = 0; b < plan.buckets.size(); ++b) {
    // A colocated rank unpacks its own buckets from staging, so they have to be there.
    const bool may_stay = !plan.receives(plan.buckets[b].destinations, trainer);
    const ProgramRange& range = programs_.buckets[b].moves;
    for (std::uint32_t i = range.first; i < range.first + range.count; ++i) {
      const Move& move = programs_.moves[i];
      if (may_stay && move.dense() && move.bytes() >= kDirectBytes) {
        in_place_[programs_.segments[i]] = move.offset;
      } else {
        staged_[b].push_back(move);
      }
    }
  }
}

void MemorySource::find_largest(std::int64_t /*trainer*/, std::span<float> largest,
                                const std::function<void()>& /*poll*/) {
  const std::byte* const base = memory_.data();
  executor_->find_largest(programs_.quants, {{&base, 1}}, largest);
}

std::byte* MemorySource::in_place(std::uint32_t segment) const {
  return in_place_[segment] == kStaged ? nullptr : memory_.data() + in_place_[segment];
}

void MemorySource::pack(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) {
  const std::byte* const base = memory_.data();
  executor_->pack(staged_[bucket], {&base, 1}, staging);
  const auto part = [](const auto& list, const ProgramRange& range) {
    return std::span(list).subspan(range.first, range.count);
  };
  const HeldPrograms::Ranges& ranges = programs_.buckets[bucket];
  const std::span<const QuantMove> quants = part(programs_.quants, ranges.quants);
  const auto quant_results = std::span(quant_results_).first(digests.empty() ? 0 : quants.size());
  const bool codes_travel = std::any_of(quants.begin(), quants.end(), [](const QuantMove& move) {
    return move.codes.space != Space::kNowhere;
  });
  if (codes_travel || !quant_results.empty()) {
    executor_->quantize(quants, {{&base, 1}, staging}, scales(), quant_results);
  }
  if (digests.empty()) return;
  for (std::size_t i = 0; i < quants.size(); ++i) {
    digests[quants[i].segment] = quant_results[i].codes;
    digests[plan_.segments.size() + quants[i].segment] = quant_results[i].scales;
  }
  const std::span<const DigestBox> boxes = part(programs_.boxes, ranges.boxes);
  const auto results = std::span(results_).first(boxes.size());
  executor_->digest(boxes, {&base, 1}, results);
  for (std::size_t i = 0; i < boxes.size(); ++i) digests[boxes[i].segment] = results[i];
}

}  // namespace weightcast
