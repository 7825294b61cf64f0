#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/cuda/cuda_moves.hpp"
#include "kernels/cuda/cuda_quantizer.hpp"
#include "model/family.hpp"
#include "plan/plan.hpp"
#include "plan/rank_plan.hpp"
#include "session/cuda/peer_memory.hpp"
#include "session/cuda/stage_clock.hpp"
#include "session/cuda/update_memory.hpp"
#include "session/schedule.hpp"
#include "session/thread_blocks.hpp"
#include "source/cuda/resident_source.hpp"
#include "sys/cuda.hpp"

namespace weightcast {

/// Brings direct buckets from this rank's weights into the parameters of other ranks of this host, and learns
/// when others have done so with this rank's. What is told travels through words of the host's memory, one
/// for each bucket of the plan: the number of the last update in which the bucket was written. So no stream
/// of a device ever waits for another device, and a rank whose peer dies ends as it does over NCCL.
class DirectStage {
 public:
  /// All references must outlive the stage; `peers` is null where nothing is direct. `parameters[p]` is the
  /// device memory of parameter p of this rank.
  DirectStage(const Plan& plan, const RankPlan& rank_plan, const Family& family, const Schedule& schedule,
              const UpdateMemory& memory, std::unique_ptr<PeerMemory> peers,
              std::vector<std::byte*> parameters, StageClock& clock, const ThreadBlocks& blocks);

  /// The streams that buckets are written in; none where this rank writes nothing.
  std::span<const CudaStream> streams() const { return lanes_; }
  /// Whether this rank writes direct buckets.
  bool writes() const { return !lanes_.empty(); }

  /// Makes `source` the source of what is enqueued from now on, and compiles its programs unless it is the
  /// same as before.
  void prepare(const ResidentSource& source);
  /// An update begins, with digests or without; the same number of times on all ranks.
  void begin(bool verifies);
  /// Writes bucket k of the rank plan. Digests of what is quantised on the way are added to `digests`, unless
  /// that is null. Returns the stream that it is written in.
  cudaStream_t enqueue(std::size_t k, std::uint64_t* digests);
  /// Tells the destinations which buckets are written by now.
  void publish();
  /// Whether the root of bucket k has written it in this update.
  bool arrived(std::size_t k) const;

 private:
  void open_lanes();

  const Plan& plan_;
  const RankPlan& rank_plan_;
  const Family& family_;
  const Schedule& schedule_;
  const UpdateMemory& memory_;
  std::unique_ptr<PeerMemory> peers_;
  std::vector<std::byte*> own_parameters_;
  StageClock& clock_;
  const ThreadBlocks& thread_blocks_;
  std::vector<CudaStream> lanes_;
  std::vector<std::size_t> lane_of_;  ///< by bucket of the rank plan

  std::uint64_t source_ = 0;  ///< its number; 0: none yet
  const ResidentSource* weights_ = nullptr;
  CudaMovePrograms moves_;  ///< by bucket of the rank plan, as all of these
  CudaQuantPrograms codes_;
  CudaQuantPrograms quants_;

  // Of the current update.
  std::uint32_t update_ = 0;
  int blocks_ = 0;
  std::vector<std::size_t> unpublished_;  ///< buckets that have been enqueued
};

}  // namespace weightcast
