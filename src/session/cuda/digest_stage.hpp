#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/cuda/cuda_digests.hpp"
#include "kernels/cuda/cuda_moves.hpp"
#include "plan/plan.hpp"
#include "plan/rank_plan.hpp"
#include "session/cuda/digest_results.hpp"
#include "session/cuda/local_stage.hpp"
#include "session/cuda/stage_clock.hpp"
#include "session/cuda/update_memory.hpp"
#include "source/cuda/resident_source.hpp"
#include "sys/cuda.hpp"

namespace weightcast {

/// Computes the digests of what is sent from the device and of what was written, and finds padding that is
/// not zero. Does nothing for an update that wants no digests.
class DigestStage {
 public:
  /// All references must outlive the stage. `parameters[p]` is the device memory of parameter p, `padding`
  /// has one program, of RankPlan::padding. `blocks`: most thread blocks of a kernel, where no call says.
  DigestStage(const Plan& plan, const RankPlan& rank_plan, const UpdateMemory& memory,
              std::span<std::byte* const> parameters, const CudaMovePrograms& padding, StageClock& clock,
              int blocks);

  cudaStream_t stream() const { return stream_.get(); }
  /// That of local buckets, which need not wait for what has yet to arrive.
  cudaStream_t local_stream() const { return local_stream_.get(); }
  const DigestResults& results() const { return results_; }

  /// An update begins; `sent` and `written` are those of Pipeline::run. `source` is null where no weights are
  /// sent from the device.
  void begin(const ResidentSource* source, std::span<std::uint64_t> sent, std::span<std::uint64_t> written);
  /// Forgets the results of the update before.
  void enqueue_clear() { results_.enqueue_clear(stream()); }
  /// Where digests of what is sent from the device are added; null where nobody wants them.
  std::uint64_t* sent() const { return source_ == nullptr || sent_.empty() ? nullptr : results_.sent(); }
  /// Digests of what bucket k of the rank plan sends, but for those that packing makes, or `local`, where
  /// that is what brings the bucket to its place.
  void enqueue_sent(std::size_t k, const LocalStage* local, int blocks);
  /// Digests of what bucket k writes directly, but for those of what is quantised on the way.
  void enqueue_sent_directly(std::size_t k, int blocks);
  /// Digests of what bucket k has written, after everything that is in the stream `writer` now; in `stream`,
  /// one of the two above.
  void enqueue_written(std::size_t k, cudaStream_t writer, int blocks, cudaStream_t stream);
  /// Brings the results to the host; all writes come before.
  void enqueue_results();
  /// Fills `sent` and `written` of `begin`; the results have arrived.
  void read_results();

  /// Index of the first move of RankPlan::padding whose region was not zero when results were last read, or
  /// -1.
  std::int64_t first_dirty_padding() const { return dirty_; }

  // The kernels alone, in any stream, whose results nobody reads.
  void run_sent(std::size_t k, const ResidentSource& source, ResidentSource::Digests digests, int blocks,
                cudaStream_t stream) const;
  void run_written(std::size_t k, int blocks, cudaStream_t stream) const;

 private:
  const RankPlan& rank_plan_;
  const UpdateMemory& memory_;
  const CudaMovePrograms& padding_;
  StageClock& clock_;
  int blocks_;
  DigestResults results_;
  CudaDigestPrograms checks_;  ///< by bucket of the rank plan
  CudaStream stream_{CudaStream::Priority::kNormal};
  CudaStream local_stream_{CudaStream::Priority::kNormal};
  CudaEvent written_by_writer_{CudaEvent::Kind::kOrder};
  std::int64_t dirty_ = -1;

  // Of the current update.
  const ResidentSource* source_ = nullptr;
  std::span<std::uint64_t> sent_;
  std::span<std::uint64_t> written_;
};

}  // namespace weightcast
