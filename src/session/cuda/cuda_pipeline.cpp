#include "session/cuda/cuda_pipeline.hpp"

#include <nvtx3/nvtx3.hpp>
#include <utility>

#include "core/error.hpp"
#include "sys/backoff.hpp"

namespace weightcast {

CudaPipeline::CudaPipeline(const Plan& plan, const RankPlan& rank_plan, const Family& family,
                           std::vector<std::size_t> routes, std::vector<std::byte*> parameters,
                           std::unique_ptr<NcclTransport> transport, DirectParts direct, Control& control,
                           int blocks, const std::vector<std::uint32_t>& rounds)
    : rank_plan_(rank_plan),
      control_(control),
      rounds_(rank_plan, rounds),
      // What a rank writes in a round it may still have to send: nothing goes past staging.
      resident_schedule_(plan, rank_plan, rounds.empty(), rounds, direct.buckets),
      host_schedule_(plan, rank_plan, false, rounds, direct.buckets),
      stages_(
          plan, rank_plan, family, resident_schedule_, std::move(routes), std::move(parameters),
          std::move(transport), std::move(direct.peers), [this] { poll(); }, blocks) {
  awaited_.reserve(rank_plan.buckets.size());
}

CudaPipeline::~CudaPipeline() = default;

void CudaPipeline::poll() {
  stages_.wire.transport().check();
  control_.deadline.poll();
  if (control_.call_off.heard()) throw CalledOff();
}

void CudaPipeline::break_off() {
  broken_ = true;
  stages_.wire.transport().abort();
  stages_.pack.abandon();
}

void CudaPipeline::reopen_wire() {
  control_.call_off.begin();
  stages_.wire.transport().reopen();
  broken_ = false;
}

void CudaPipeline::prepare(const Source* source) {
  if (source == nullptr) return;
  stages_.pack.prepare(*source);
  const ResidentSource* const resident = source->resident();
  if (resident == nullptr) {
    if (stages_.direct.writes()) throw InternalError("weights on the host were to be written directly");
    return;
  }
  stages_.local.prepare(*resident);
  stages_.direct.prepare(*resident);
}

std::exception_ptr CudaPipeline::run(Source* source, std::span<const GlobalScale> scales,
                                     std::span<std::uint64_t> sent, std::span<std::uint64_t> written,
                                     Progress& progress) {
  const nvtx3::scoped_range range("weightcast update");
  const ResidentSource* resident = source == nullptr ? nullptr : source->resident();
  schedule_ = resident == nullptr ? &host_schedule_ : &resident_schedule_;
  sends_ = source != nullptr;
  control_.call_off.begin();
  stages_.pack.begin(source, sent);
  stages_.wire.begin(tracing_ || stages_.pack.from_host());
  stages_.digests.begin(resident, sent, written);
  stages_.direct.begin(!sent.empty() || !written.empty());
  done_ = 0;
  awaited_.clear();
  try {
    enqueue_all(scales);
    wait_for_arrivals(progress);
    enqueue_end();
    wait_for_the_end(progress);
  } catch (const NcclError&) {
    control_.call_off.announce();
    break_off();
    return std::current_exception();
  } catch (const CalledOff&) {
    // The rank that has called the update off says why.
    break_off();
    return nullptr;
  }
  std::exception_ptr failure = stages_.pack.end();
  if (!failure) stages_.digests.read_results();
  return failure;
}

void CudaPipeline::transfer_staging(bool resident) {
  const Schedule& schedule = resident ? resident_schedule_ : host_schedule_;
  stages_.wire.begin(false);
  for (const Schedule::Batch batch : schedule.batches()) stages_.wire.enqueue(schedule, batch);
  stages_.wire.transport().wait();
}

template <typename Work>
void CudaPipeline::for_each_stream(Work work) {
  work(stages_.pack.stream());
  work(stages_.unpack.stream());
  work(stages_.local.stream());
  work(stages_.digests.local_stream());
  for (const CudaStream& stream : stages_.wire.streams()) work(stream.get());
  for (const CudaStream& stream : stages_.direct.streams()) work(stream.get());
}

void CudaPipeline::enqueue_all(std::span<const GlobalScale> scales) {
  const nvtx3::scoped_range range("enqueue");
  const cudaStream_t first_and_last = stages_.digests.stream();
  stages_.clock.start(first_and_last);
  stages_.digests.enqueue_clear();
  stages_.memory.enqueue_scales(scales, first_and_last);
  begun_.record(first_and_last);
  for_each_stream([&](cudaStream_t stream) { begun_.hold(stream); });
  stages_.padding.unpack(0, nullptr, stages_.blocks.beside_transfers, stages_.unpack.stream());
  for (const Schedule::Batch batch : schedule_->batches()) enqueue_batch(batch);
  stages_.wire.enqueue_end(*schedule_);
}

void CudaPipeline::enqueue_end() {
  const cudaStream_t first_and_last = stages_.digests.stream();
  // Whatever the other streams still do comes before the end.
  for_each_stream([&](cudaStream_t stream) {
    joined_.record(stream);
    joined_.hold(first_and_last);
  });
  stages_.digests.enqueue_results();
  ended_.record(first_and_last);
}

void CudaPipeline::enqueue_batch(Schedule::Batch batch) {
  for (std::size_t k = batch.first; k < batch.last; ++k) {
    if (schedule_->direct(k)) {
      enqueue_direct(k);
    } else {
      schedule_->local(k) ? enqueue_local(k) : enqueue_departure(k);
    }
  }
  stages_.wire.enqueue(*schedule_, batch);
  if (rounds_.none()) return enqueue_arrivals({batch.first, batch.last});
  // A batch lies in one round.
  const Rounds::Range round = rounds_.of(batch.first);
  if (batch.last < round.last) return;
  const cudaStream_t writer = stages_.unpack.stream();
  for (std::size_t k = round.first; k < round.last; ++k) {
    if (rank_plan_.buckets[k].root) stages_.pack.packed(schedule_->slots().slot(k)).hold(writer);
  }
  // Digests of what is sent read it, too.
  read_.record(stages_.digests.stream());
  read_.hold(writer);
  enqueue_arrivals(round);
}

void CudaPipeline::enqueue_arrivals(Rounds::Range round) {
  for (std::size_t k = round.first; k < round.last; ++k) {
    if (schedule_->staged(k) && rank_plan_.buckets[k].destination) enqueue_arrival(k);
  }
}

void CudaPipeline::enqueue_local(std::size_t k) {
  stages_.local.enqueue(k, stages_.digests.sent(), arrival_blocks(k));
  stages_.digests.enqueue_sent(k, &stages_.local, arrival_blocks(k));
  stages_.digests.enqueue_written(k, stages_.local.stream(), arrival_blocks(k),
                                  stages_.digests.local_stream());
}

void CudaPipeline::enqueue_direct(std::size_t k) {
  const RankBucket& bucket = rank_plan_.buckets[k];
  if (!bucket.root) {
    awaited_.push_back(k);
    return;
  }
  const cudaStream_t writer = stages_.direct.enqueue(k, stages_.digests.sent());
  stages_.digests.enqueue_sent_directly(k, stages_.blocks.beside_transfers);
  if (!bucket.destination) return;
  stages_.digests.enqueue_written(k, writer, arrival_blocks(k), stages_.digests.stream());
}

bool CudaPipeline::exchange_direct() {
  stages_.direct.publish();
  std::erase_if(awaited_, [&](std::size_t k) {
    if (!stages_.direct.arrived(k)) return false;
    // It is there, so that its digests wait for nothing; a rank that writes nothing has the device for them.
    const cudaStream_t stream = stages_.digests.stream();
    stages_.digests.enqueue_written(
        k, stream, stages_.direct.writes() ? arrival_blocks(k) : stages_.blocks.alone, stream);
    return true;
  });
  return awaited_.empty();
}

void CudaPipeline::enqueue_departure(std::size_t k) {
  const CudaEvent* free = slot_free(k);
  if (!rank_plan_.buckets[k].root) {
    if (free != nullptr) free->hold(stages_.wire.stream_of(k));
    return;
  }
  const std::size_t slot = schedule_->slots().slot(k);
  const ThreadBlocks& blocks = stages_.blocks;
  if (free != nullptr) free->hold(stages_.pack.stream());
  stages_.pack.enqueue(k, slot, schedule_->packed_alone(k) ? blocks.alone : blocks.beside_transfers);
  stages_.digests.enqueue_sent(k, nullptr, blocks.beside_transfers);
  stages_.pack.packed(slot).hold(stages_.wire.stream_of(k));
}

void CudaPipeline::enqueue_arrival(std::size_t k) {
  const std::size_t slot = schedule_->slots().slot(k);
  stages_.wire.travelled(slot).hold(stages_.unpack.stream());
  stages_.unpack.enqueue(k, slot, arrival_blocks(k));
  stages_.digests.enqueue_written(k, stages_.unpack.stream(), arrival_blocks(k), stages_.digests.stream());
}

const CudaEvent* CudaPipeline::slot_free(std::size_t k) const {
  const std::size_t before = schedule_->slots().before(k);
  if (before == StagingSlots::kNone) return nullptr;
  // What arrived there has been unpacked, what was sent from there has left.
  const std::size_t slot = schedule_->slots().slot(k);
  return rank_plan_.buckets[before].destination ? &stages_.unpack.unpacked(slot)
                                                : &stages_.wire.travelled(slot);
}

int CudaPipeline::arrival_blocks(std::size_t k) const {
  return schedule_->unpacked_alone(k) ? stages_.blocks.alone : stages_.blocks.beside_transfers;
}

void CudaPipeline::wait_for_arrivals(Progress& progress) {
  const nvtx3::scoped_range range("wait for what others write");
  for (Backoff backoff; !exchange_direct(); backoff.pause()) look_around(progress);
}

void CudaPipeline::wait_for_the_end(Progress& progress) {
  const nvtx3::scoped_range range("wait");
  for (Backoff backoff; !ended_.reached(); backoff.pause()) {
    exchange_direct();
    look_around(progress);
  }
  exchange_direct();
  for (; done_ < rank_plan_.buckets.size(); ++done_) {
    progress.advance(rank_plan_.buckets[done_].progress_bytes);
  }
}

void CudaPipeline::look_around(Progress& progress) {
  for (; done_ < rank_plan_.buckets.size() && is_done(done_); ++done_) {
    progress.advance(rank_plan_.buckets[done_].progress_bytes);
  }
  progress.advance(0);
  poll();
}

bool CudaPipeline::is_done(std::size_t k) const {
  const RankBucket& bucket = rank_plan_.buckets[k];
  if (schedule_->direct(k)) {
    return bucket.root ? stages_.clock.ended(TraceStage::kTransport, k).reached() : stages_.direct.arrived(k);
  }
  return stages_.clock.ended(bucket.destination ? TraceStage::kUnpack : TraceStage::kPack, k).reached();
}

StageSeconds CudaPipeline::stage_seconds() {
  StageSeconds seconds = sum_by_stage(stages_.clock.slices());
  // A receiver's wire also waits for what the root has yet to send.
  if (!sends_) seconds.transport = 0;
  if (stages_.pack.from_host()) seconds.pack = stages_.pack.reading_seconds();
  return seconds;
}

std::vector<TraceSlice> CudaPipeline::slices() {
  std::vector<TraceSlice> slices = stages_.clock.slices();
  for (TraceSlice& slice : slices) {
    slice.bucket = rank_plan_.buckets[static_cast<std::size_t>(slice.bucket)].bucket;
  }
  return slices;
}

}  // namespace weightcast
