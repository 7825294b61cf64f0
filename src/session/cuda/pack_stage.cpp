#include "session/cuda/pack_stage.hpp"

#include <utility>

namespace weightcast {

PackStage::PackStage(const Plan& plan, const RankPlan& rank_plan, const UpdateMemory& memory,
                     std::uint64_t* digests, StageClock& clock, std::function<void()> poll)
    : plan_(plan),
      rank_plan_(rank_plan),
      memory_(memory),
      digests_(digests),
      clock_(clock),
      poll_(std::move(poll)) {
  for (std::int64_t slot = 0; slot < plan.limits.buffers; ++slot) {
    packed_.emplace_back(CudaEvent::Kind::kOrder);
  }
}

void PackStage::prepare(const Source& source) {
  if (source.resident() == nullptr && !feed_) feed_ = std::make_unique<FileFeed>(plan_, rank_plan_);
}

void PackStage::begin(Source* source, std::span<std::uint64_t> sent) {
  resident_ = source == nullptr ? nullptr : source->resident();
  from_host_ = source != nullptr && resident_ == nullptr;
  with_digests_ = !sent.empty();
  copied_ = 0;
  if (from_host_) feed_->begin(*source->on_host(), sent);
}

void PackStage::enqueue(std::size_t k, std::size_t slot, int blocks) {
  const cudaStream_t stream = stream_.get();
  clock_.begin(TraceStage::kPack, k, stream);
  if (from_host_) {
    // What waits here is the reading; the device goes on with what it has.
    feed_->copy(copied_++, memory_.slot(slot), stream, poll_);
  } else {
    resident_->enqueue_pack(rank_plan_.buckets[k].bucket, memory_.slot(slot), memory_.scales(),
                            with_digests_ ? digests_ : nullptr, blocks, stream);
  }
  clock_.end(TraceStage::kPack, k, stream);
  packed_[slot].record(stream);
}

std::exception_ptr PackStage::end() {
  return from_host_ ? feed_->finish() : nullptr;
}

void PackStage::abandon() {
  if (!from_host_) return;
  feed_->abandon();
  static_cast<void>(feed_->finish());
}

}  // namespace weightcast
