#include "measure/staged_values.hpp"

#include <algorithm>

#include "core/error.hpp"
#include "model/synthetic.hpp"
#include "plan/quantizing.hpp"

namespace weightcast {

namespace {

bool same_segments(const std::vector<Segment>& a, const std::vector<Segment>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Segment& x, const Segment& y) {
    return x.tensor == y.tensor && x.box == y.box && x.offset == y.offset;
  });
}

}  // namespace

StagedValues::StagedValues(ThreadPool& pool) : pool_(pool), executor_(make_host_executor()) {}

void StagedValues::fill(const Plan& plan, const Catalog& catalog) {
  if (plan.buckets.size() != 1) throw InternalError("values to stage that are not in one bucket");
  if (same_segments(segments_, plan.segments)) return;
  segments_ = plan.segments;
  memory_ = HostBuffer(plan.buckets.front().bytes, "the values");
  pool_.run(segments_.size(), [&](std::size_t number) {
    const Segment& segment = segments_[number];
    const Tensor& tensor = catalog[segment.tensor];
    if (segment.box.cols != tensor.shape.cols()) throw InternalError("values to stage that are cut columns");
    fill_synthetic(tensor, 0, segment.box.row * segment.box.cols,
                   memory_.span().subspan(static_cast<std::size_t>(segment.offset),
                                          static_cast<std::size_t>(plan.segment_bytes(segment))));
  });
}

std::vector<GlobalScale> StagedValues::scales(const Plan& plan, const RankPlan& rank_plan) const {
  std::vector<float> largest(plan.scopes.size(), 0.0f);
  if (!largest.empty()) executor_->find_largest(rank_plan.quants, {{}, memory_.data(), {}}, largest);
  return scales_of_scopes(plan, largest);
}

std::vector<std::uint64_t> StagedValues::digests(const Plan& plan, const Catalog& catalog,
                                                 const RankPlan& rank_plan,
                                                 std::span<const GlobalScale> scales) const {
  std::vector<std::uint64_t> digests(plan.digests(), 0);
  // What is not quantised arrives as it is.
  pool_.run(plan.segments.size(), [&](std::size_t number) {
    const Segment& segment = plan.segments[number];
    const WireForm& form = plan.wire[segment.tensor];
    if (form.quantized()) return;
    DigestBox box{segment.offset, segment.box.cols * form.element_bytes, segment.box,
                  plane_key(catalog[segment.tensor], Plane::kValues)};
    box.element_bytes = static_cast<std::uint8_t>(form.element_bytes);
    const std::byte* const values = memory_.data();
    executor_->digest({&box, 1}, {&values, 1}, {&digests[number], 1});
  });
  pool_.run(rank_plan.quants.size(), [&](std::size_t i) {
    QuantMove quant = rank_plan.quants[i];
    quant.codes.space = quant.scales.space = Space::kNowhere;
    QuantDigests made;
    executor_->quantize({&quant, 1}, {{}, memory_.data(), {}}, scales, {&made, 1});
    digests[quant.segment] = made.codes;
    digests[plan.segments.size() + quant.segment] = made.scales;
  });
  return digests;
}

}  // namespace weightcast
