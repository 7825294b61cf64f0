#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "plan/plan.hpp"
#include "plan/rank_plan.hpp"
#include "session/cuda/stage_clock.hpp"
#include "session/cuda/update_memory.hpp"
#include "source/cuda/file_feed.hpp"
#include "source/cuda/resident_source.hpp"
#include "sys/cuda.hpp"

namespace weightcast {

/// Fills staging slots with what this rank sends: packed from weights on the device, or copied from pinned
/// buffers into which a source on the host is read meanwhile.
class PackStage {
 public:
  /// All references must outlive the stage. `digests`: device memory for those of what is quantised on the
  /// way, as ResidentSource::enqueue_pack. `poll` is called while the host waits for what is being read, and
  /// may throw.
  PackStage(const Plan& plan, const RankPlan& rank_plan, const UpdateMemory& memory, std::uint64_t* digests,
            StageClock& clock, std::function<void()> poll);

  cudaStream_t stream() const { return stream_.get(); }
  /// Happens when what was put last into the slot is there.
  const CudaEvent& packed(std::size_t slot) const { return packed_[slot]; }

  /// Makes what this kind of source needs, unless an earlier update has made it.
  void prepare(const Source& source);
  /// An update begins; `source` may be null, `sent` is that of Pipeline::run.
  void begin(Source* source, std::span<std::uint64_t> sent);
  /// Puts bucket k of the rank plan into a slot. Waits for nothing but, from the host, for what is being
  /// read.
  void enqueue(std::size_t k, std::size_t slot, int blocks);
  /// The device has done all of the update. Returns what the source threw, or null.
  std::exception_ptr end();
  /// The wire is broken: nothing more is read.
  void abandon();

  /// Of the last update: whether it was read on the host, and the seconds that this took.
  bool from_host() const { return from_host_; }
  double reading_seconds() const { return feed_->reading_seconds(); }
  /// The pinned buffers, one behind the other; none before a source on the host was prepared.
  std::span<std::byte> host_buffers() const { return feed_ ? feed_->buffers() : std::span<std::byte>(); }

 private:
  const Plan& plan_;
  const RankPlan& rank_plan_;
  const UpdateMemory& memory_;
  std::uint64_t* digests_;
  StageClock& clock_;
  std::function<void()> poll_;
  std::unique_ptr<FileFeed> feed_;
  CudaStream stream_{CudaStream::Priority::kNormal};
  std::vector<CudaEvent> packed_;  ///< by slot

  // Of the current update.
  const ResidentSource* resident_ = nullptr;
  bool from_host_ = false;
  bool with_digests_ = false;
  std::size_t copied_ = 0;  ///< buckets from the host
};

}  // namespace weightcast
