#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "control/control.hpp"
#include "kernels/cuda/cuda_digests.hpp"
#include "kernels/cuda/cuda_moves.hpp"
#include "kernels/cuda/cuda_quantizer.hpp"
#include "memory/device_buffer.hpp"
#include "plan/plan.hpp"
#include "plan/share.hpp"
#include "session/cuda/stage_clock.hpp"
#include "session/pipeline.hpp"
#include "source/cuda/file_feed.hpp"
#include "source/cuda/resident_source.hpp"
#include "sys/cuda.hpp"
#include "transport/nccl_transport.hpp"

namespace weightcast {

/// Pack, transport, unpack and digests on streams of their own, ordered by events alone: the host puts the
/// whole update into the streams and then waits once, at its end, in one loop over the last event, the wire's
/// asynchronous errors and the deadline. Only for a source on the host does it wait for what is being read.
class CudaPipeline final : public Pipeline {
 public:
  /// All references must outlive the pipeline. `routes[b]` is the transport's route of plan bucket b,
  /// `parameters[p]` the device memory of parameter p. `blocks`: most thread blocks of a kernel; 0 takes
  /// `default_blocks`.
  CudaPipeline(const Plan& plan, const Share& share, std::vector<std::size_t> routes,
               std::vector<std::byte*> parameters, std::unique_ptr<NcclTransport> transport, Control& control,
               int blocks);
  ~CudaPipeline() override;
  CudaPipeline(const CudaPipeline&) = delete;
  CudaPipeline& operator=(const CudaPipeline&) = delete;

  void prepare(const Source* source) override;
  std::exception_ptr run(Source* source, std::span<const GlobalScale> scales, std::span<std::uint64_t> sent,
                         std::span<std::uint64_t> written, Progress& progress) override;
  bool wire_is_broken() const override { return broken_; }
  void reopen_wire() override;
  std::span<std::byte> host_staging() override { return feed_ ? feed_->buffers() : std::span<std::byte>(); }
  std::int64_t first_dirty_padding() override;
  StageSeconds stage_seconds() override;
  void trace() override { tracing_ = true; }
  std::vector<TraceSlice> slices() override;
  void poison(std::byte value) override;

  /// A quarter of the device's multiprocessors: enough to keep ahead of the wire, few enough to leave NCCL's
  /// own kernels theirs.
  static int default_blocks();

  // What a benchmark measures one by one.
  NcclTransport& transport() { return *transport_; }
  /// Bucket k of the share from `staging` into the parameters.
  void enqueue_unpack(std::size_t k, const std::byte* staging, int blocks, cudaStream_t stream) const;
  /// The scales of the plan's scopes, in device memory.
  const GlobalScale* scales() const { return reinterpret_cast<const GlobalScale*>(scales_.data()); }
  /// A staging buffer; numbers go round.
  std::byte* buffer(std::size_t number) const;
  int blocks() const { return blocks_; }
  cudaStream_t stream() const { return pack_stream_.get(); }
  /// All digests of an update, whose results nobody reads.
  void enqueue_digests(const ResidentSource* source, int blocks, cudaStream_t stream) const;

 private:
  void enqueue_all();
  /// Everything of the buckets [first, last) of the share, which travel at once.
  void enqueue_group(std::size_t first, std::size_t last);
  void enqueue_pack(std::size_t k);
  /// From this rank's own weights to its own parameters, without staging.
  void enqueue_local(std::size_t k);
  /// Digests of what bucket k was packed from, in device memory.
  void enqueue_source_digests(std::size_t k);
  /// Digests of what bucket k wrote, by the stream that `writer` is.
  void enqueue_check(std::size_t k, cudaStream_t writer);
  void enqueue_arrival(std::size_t k);
  void enqueue_results();
  /// Thread blocks for bucket k's kernels of a stage: the first to be packed and the last to be unpacked have
  /// the device to themselves.
  int pack_blocks(std::size_t k) const { return k == 0 ? whole_device_ : blocks_; }
  int arrival_blocks(std::size_t k) const { return k + 1 == share_.buckets.size() ? whole_device_ : blocks_; }
  void wait_for_the_end(Progress& progress);
  /// Throws what the wire says, and CalledOff when another rank's wire has failed.
  void poll();
  /// Ends everything that is in the streams.
  void break_off();
  /// Happens when the staging buffer of bucket k may be filled, k not among the first.
  const CudaEvent& slot_free(std::size_t k) const;
  /// Happens when this rank has done its part of bucket k but for sending and digests.
  const CudaEvent& last_stage(std::size_t k) const;
  void collect_results();
  /// Numbers the staging buffers of this update's buckets.
  void assign_slots();
  void compile_local(const ResidentSource& source);
  bool from_host() const { return source_ != nullptr && source_->resident() == nullptr; }
  /// Whether bucket k needs no staging, because nobody but this rank sends or receives it.
  bool is_local(std::size_t k) const {
    return local_only_[k] && source_ != nullptr && source_->resident() != nullptr;
  }
  std::size_t slot_number(std::size_t k) const {
    return static_cast<std::size_t>(positions_[k]) % free_.size();
  }
  std::byte* slot(std::size_t k) const { return buffer(slot_number(k)); }
  cudaStream_t wire(std::size_t k) const { return wires_[slot_number(k)]; }
  /// Whether the buffer of bucket k has held an earlier one of this update.
  bool slot_used(std::size_t k) const { return positions_[k] >= std::ssize(free_); }

  const Plan& plan_;
  const Share& share_;
  std::vector<std::size_t> routes_;
  std::unique_ptr<NcclTransport> transport_;
  Control& control_;
  int blocks_;
  int whole_device_;

  CudaMovePrograms unpack_;               ///< by share bucket; the last one fills the padding
  CudaQuantPrograms quants_;              ///< by share bucket: what is quantised on arrival
  CudaDigestPrograms checks_;             ///< by share bucket
  std::vector<std::size_t> groups_;       ///< first share bucket of each, and one behind the last
  std::vector<bool> local_only_;          ///< by share bucket: root and only destination
  CudaMovePrograms local_;                ///< by share bucket, for source `local_number_`
  CudaQuantPrograms local_quants_;        ///< likewise
  std::uint64_t local_number_ = 0;        ///< ResidentSource::number(); 0: of none
  std::vector<std::int64_t> positions_;   ///< by share bucket: number among those that use staging, or -1
  std::vector<std::size_t> in_position_;  ///< the share bucket of each position
  DeviceBuffer ring_;
  DeviceBuffer scales_;           ///< of the plan's scopes, in the update that runs
  DeviceBuffer sent_results_;     ///< digests by number of the source's results
  DeviceBuffer written_results_;  ///< digests by check, then the first dirty padding
  PinnedBuffer host_results_;     ///< of both, copied at the end of an update
  std::unique_ptr<FileFeed> feed_;

  CudaStream pack_stream_;
  CudaStream unpack_stream_;
  CudaStream local_stream_;
  CudaStream verify_stream_;           ///< where an update begins and ends
  std::vector<cudaStream_t> streams_;  ///< all others, the wire's too
  std::vector<CudaEvent> packed_;      ///< by staging buffer
  std::vector<cudaStream_t> wires_;    ///< by staging buffer: the stream of what travels there
  std::vector<CudaEvent> free_;        ///< by staging buffer: has been unpacked
  CudaEvent begun_;
  CudaEvent unpacked_;
  CudaEvent joined_;
  CudaEvent ended_;
  StageClock clock_;
  bool tracing_ = false;
  std::vector<std::byte*> parameters_;

  // What the current update works on.
  Source* source_ = nullptr;
  std::span<const GlobalScale> agreed_scales_;  ///< of the plan's scopes, on the host
  std::span<std::uint64_t> sent_;
  std::span<std::uint64_t> written_;
  std::size_t roots_done_ = 0;  ///< buckets that this rank has packed
  std::int64_t dirty_ = -1;
  bool broken_ = false;
};

}  // namespace weightcast
