#include "session/cuda/digest_stage.hpp"

#include <vector>

namespace weightcast {

DigestStage::DigestStage(const Plan& plan, const RankPlan& rank_plan, const UpdateMemory& memory,
                         std::span<std::byte* const> parameters, const CudaMovePrograms& padding,
                         StageClock& clock, int blocks)
    : rank_plan_(rank_plan),
      memory_(memory),
      padding_(padding),
      clock_(clock),
      blocks_(blocks),
      results_(plan, rank_plan) {
  std::vector<ProgramRange> checks;
  for (const RankBucket& bucket : rank_plan.buckets) checks.push_back({bucket.first_check, bucket.checks});
  checks_ = CudaDigestPrograms(rank_plan.checks, checks, parameters);
}

void DigestStage::begin(const ResidentSource* source, std::span<std::uint64_t> sent,
                        std::span<std::uint64_t> written) {
  source_ = source;
  sent_ = sent;
  written_ = written;
}

void DigestStage::enqueue_sent(std::size_t k, const LocalStage* local, int blocks) {
  if (sent() == nullptr) return;
  // A bucket has one slice in this lane: that of what was written, where there is both.
  const bool timed = !rank_plan_.buckets[k].destination;
  const cudaStream_t stream = local == nullptr ? stream_.get() : local_stream_.get();
  if (timed) clock_.begin(TraceStage::kVerify, k, stream);
  if (local != nullptr) local->run_rest(k, results_.sent(), blocks, stream);
  using enum ResidentSource::Digests;
  run_sent(k, *source_, local == nullptr ? kNotPacked : kOfQuantized, blocks, stream);
  if (timed) clock_.end(TraceStage::kVerify, k, stream);
}

void DigestStage::enqueue_sent_directly(std::size_t k, int blocks) {
  if (sent() == nullptr) return;
  const bool timed = !rank_plan_.buckets[k].destination;
  if (timed) clock_.begin(TraceStage::kVerify, k, stream());
  run_sent(k, *source_, ResidentSource::Digests::kAll, blocks, stream());
  if (timed) clock_.end(TraceStage::kVerify, k, stream());
}

void DigestStage::enqueue_written(std::size_t k, cudaStream_t writer, int blocks, cudaStream_t stream) {
  if (written_.empty()) return;
  written_by_writer_.record(writer);
  written_by_writer_.hold(stream);
  clock_.begin(TraceStage::kVerify, k, stream);
  run_written(k, blocks, stream);
  clock_.end(TraceStage::kVerify, k, stream);
}

void DigestStage::enqueue_results() {
  if (!written_.empty()) {
    results_.enqueue_clean(stream());
    padding_.find_not_zero(0, results_.dirty_padding(), blocks_, stream());
  }
  if (!sent_.empty() || !written_.empty()) results_.enqueue_copy(stream());
}

void DigestStage::read_results() {
  if (source_ != nullptr && !sent_.empty()) results_.read_sent(source_->sent_digests(), sent_);
  if (written_.empty()) return;
  results_.read_written(written_);
  dirty_ = results_.first_dirty_padding();
}

void DigestStage::run_sent(std::size_t k, const ResidentSource& source, ResidentSource::Digests digests,
                           int blocks, cudaStream_t stream) const {
  source.enqueue_digests(rank_plan_.buckets[k].bucket, memory_.scales(), results_.sent(), digests, blocks,
                         stream);
}

void DigestStage::run_written(std::size_t k, int blocks, cudaStream_t stream) const {
  checks_.run(k, results_.written(), blocks, stream);
}

}  // namespace weightcast
