#include "session/cuda/wire_stage.hpp"

#include <utility>

namespace weightcast {

WireStage::WireStage(const Plan& plan, const RankPlan& rank_plan, const UpdateMemory& memory,
                     std::vector<std::size_t> routes, std::unique_ptr<NcclTransport> transport,
                     StageClock& clock)
    : plan_(plan),
      rank_plan_(rank_plan),
      memory_(memory),
      routes_(std::move(routes)),
      transport_(std::move(transport)),
      clock_(clock),
      streams_(static_cast<std::size_t>(plan.limits.buffers)) {}

void WireStage::enqueue(const Schedule& schedule, Schedule::Batch batch) {
  const auto for_each_staged = [&](auto work) {
    for (std::size_t k = batch.first; k < batch.last; ++k) {
      if (schedule.staged(k)) work(k, schedule.slots().slot(k));
    }
  };
  for_each_staged([&](std::size_t k, std::size_t slot) {
    streams_[slot] = stream_of(k);
    if (time_each_ || k == schedule.first_staged()) clock_.begin(TraceStage::kTransport, k, streams_[slot]);
  });
  NcclTransport::Group at_once(*transport_);
  for_each_staged([&](std::size_t k, std::size_t slot) {
    const Bucket& bucket = plan_.buckets[rank_plan_.buckets[k].bucket];
    const std::span<std::byte> run(memory_.slot(slot), static_cast<std::size_t>(bucket.bytes));
    transport_->start(slot, route(k), {&run, 1});
  });
  at_once.start_all();
  if (!time_each_) return;
  for_each_staged(
      [&](std::size_t k, std::size_t slot) { clock_.end(TraceStage::kTransport, k, streams_[slot]); });
}

void WireStage::enqueue_end(const Schedule& schedule) {
  if (time_each_ || schedule.first_staged() == StagingSlots::kNone) return;
  const cudaStream_t last = streams().front().get();
  for (const CudaStream& lane : streams().subspan(1)) {
    joined_.record(lane.get());
    joined_.hold(last);
  }
  clock_.end(TraceStage::kTransport, schedule.first_staged(), last);
}

}  // namespace weightcast
