#include "source/memory_source.hpp"

#include <algorithm>
#include <utility>

#include "kernels/digest.hpp"
#include "model/synthetic.hpp"

namespace weightcast {

HeldSource::HeldSource(const Plan& plan, const Catalog& catalog, std::int64_t trainer,
                       const HeldWeights& held, std::vector<std::byte*> buffers)
    : plan_(plan),
      executor_(make_host_executor()),
      buffers_(std::move(buffers)),
      read_buffers_(buffers_.begin(), buffers_.end()),
      sending_(compile_sending(plan, catalog, trainer, held)) {
  // Room for the digests of the largest bucket: an update allocates nothing.
  std::uint32_t boxes = 0;
  std::uint32_t quants = 0;
  for (const Sending::Ranges& ranges : sending_.buckets) {
    boxes = std::max(boxes, ranges.boxes.count);
    quants = std::max(quants, ranges.quants.count);
  }
  results_.resize(boxes);
  quant_results_.resize(quants);
}

void HeldSource::find_largest(std::int64_t /*trainer*/, std::span<float> largest,
                              const std::function<void()>& /*poll*/) {
  executor_->find_largest(sending_.quants, {read_buffers_}, largest);
}

std::byte* HeldSource::in_place(std::uint32_t segment) const {
  const auto& direct = sending_.direct[segment];
  return direct ? buffers_[direct->buffer] + direct->offset : nullptr;
}

void HeldSource::finish_bucket(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) {
  const auto part = [](const auto& list, const ProgramRange& range) {
    return std::span(list).subspan(range.first, range.count);
  };
  const Sending::Ranges& ranges = sending_.buckets[bucket];
  executor_->pack(part(sending_.moves, ranges.staged), read_buffers_, staging);
  const std::span<const QuantMove> quants = part(sending_.quants, ranges.quants);
  const auto quant_results = std::span(quant_results_).first(digests.empty() ? 0 : quants.size());
  const bool packs_codes = std::any_of(quants.begin(), quants.end(), [](const QuantMove& move) {
    return move.codes.space != Space::kNowhere;
  });
  if (packs_codes || !quant_results.empty()) {
    executor_->quantize(quants, {read_buffers_, staging}, scales(), quant_results);
  }
  if (digests.empty()) return;
  for (std::size_t i = 0; i < quants.size(); ++i) {
    digests[quants[i].segment] = quant_results[i].codes;
    digests[plan_.segments.size() + quants[i].segment] = quant_results[i].scales;
  }
  const std::span<const DigestBox> boxes = part(sending_.boxes, ranges.boxes);
  const auto results = std::span(results_).first(boxes.size());
  executor_->digest(boxes, read_buffers_, results);
  // Digests of the parts of a segment add up to that of the whole.
  for (const DigestBox& box : boxes) digests[box.digest] = 0;
  for (std::size_t i = 0; i < boxes.size(); ++i) {
    digests[boxes[i].digest] += boxes[i].widened ? widened_digest(results[i]) : results[i];
  }
}

std::int64_t MemorySource::bytes_needed(const Plan& plan, const Catalog& catalog, std::int64_t trainer) {
  return own_weights(plan, catalog, trainer).bytes;
}

MemorySource::MemorySource(const Plan& plan, const Catalog& catalog, std::int64_t trainer,
                           std::int64_t version)
    : MemorySource(plan, catalog, trainer, version, own_weights(plan, catalog, trainer), nullptr) {}

MemorySource::MemorySource(const Plan& plan, const Catalog& catalog, std::int64_t trainer,
                           std::int64_t version, const OwnWeights& weights,
                           std::unique_ptr<HostBuffer> memory)
    : HeldSource(
          plan, catalog, trainer, weights.held,
          {(memory = std::make_unique<HostBuffer>(weights.bytes, "the trainer's parameters"))->data()}),
      memory_(std::move(memory)) {
  for (const HeldBox& box : weights.held.boxes()) {
    const Tensor& tensor = catalog[box.tensor];
    fill_synthetic(tensor, version, box.box.row * tensor.shape.cols(),
                   memory_->span().subspan(static_cast<std::size_t>(box.offset),
                                           static_cast<std::size_t>(box.box.rows * box.pitch)));
  }
}

}  // namespace weightcast
