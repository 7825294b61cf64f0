#include "session/cuda/cuda_pipeline.hpp"

#include <nvtx3/nvtx3.hpp>
#include <utility>

#include "sys/backoff.hpp"

namespace weightcast {

CudaPipeline::CudaPipeline(const Plan& plan, const RankPlan& rank_plan, std::vector<std::size_t> routes,
                           std::vector<std::byte*> parameters, std::unique_ptr<NcclTransport> transport,
                           Control& control, int blocks, const std::vector<std::uint32_t>& rounds)
    : rank_plan_(rank_plan),
      control_(control),
      rounds_(rank_plan, rounds),
      // What a rank writes in a round it may still have to send: nothing goes past staging.
      resident_schedule_(plan, rank_plan, rounds.empty(), rounds),
      host_schedule_(plan, rank_plan, false, rounds),
      stages_(
          plan, rank_plan, resident_schedule_, std::move(routes), std::move(parameters), std::move(transport),
          [this] { poll(); }, blocks) {}

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
  if (const ResidentSource* resident = source->resident()) stages_.local.prepare(*resident);
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
  try {
    enqueue_all(scales);
    ended_.record(stages_.digests.stream());
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
  // Whatever the other streams still do comes before the end.
  for_each_stream([&](cudaStream_t stream) {
    joined_.record(stream);
    joined_.hold(first_and_last);
  });
  stages_.digests.enqueue_results();
}

void CudaPipeline::enqueue_batch(Schedule::Batch batch) {
  for (std::size_t k = batch.first; k < batch.last; ++k) {
    schedule_->local(k) ? enqueue_local(k) : enqueue_departure(k);
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
    if (!schedule_->local(k) && rank_plan_.buckets[k].destination) enqueue_arrival(k);
  }
}

void CudaPipeline::enqueue_local(std::size_t k) {
  stages_.local.enqueue(k, stages_.digests.sent(), arrival_blocks(k));
  stages_.digests.enqueue_sent(k, &stages_.local, arrival_blocks(k));
  stages_.digests.enqueue_written(k, stages_.local.stream(), arrival_blocks(k),
                                  stages_.digests.local_stream());
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

void CudaPipeline::wait_for_the_end(Progress& progress) {
  // The one wait of an update.
  const nvtx3::scoped_range range("wait");
  Backoff backoff;
  std::size_t done = 0;
  while (!ended_.reached()) {
    for (; done < rank_plan_.buckets.size() && last_stage(done).reached(); ++done) {
      progress.advance(rank_plan_.buckets[done].progress_bytes);
    }
    progress.advance(0);
    poll();
    backoff.pause();
  }
  for (; done < rank_plan_.buckets.size(); ++done) {
    progress.advance(rank_plan_.buckets[done].progress_bytes);
  }
}

const CudaEvent& CudaPipeline::last_stage(std::size_t k) const {
  return stages_.clock.ended(rank_plan_.buckets[k].destination ? TraceStage::kUnpack : TraceStage::kPack, k);
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
