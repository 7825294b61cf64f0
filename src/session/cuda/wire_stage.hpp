#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "plan/plan.hpp"
#include "plan/rank_plan.hpp"
#include "session/cuda/stage_clock.hpp"
#include "session/cuda/update_memory.hpp"
#include "session/schedule.hpp"
#include "sys/cuda.hpp"
#include "transport/nccl_transport.hpp"

namespace weightcast {

/// Sends and receives staging slots over NCCL, those of a batch at once.
class WireStage {
 public:
  /// All references must outlive the stage. `routes[b]` is the transport's route of plan bucket b
  /// where that goes through staging.
  WireStage(const Plan& plan, const RankPlan& rank_plan, const UpdateMemory& memory,
            std::vector<std::size_t> routes, std::unique_ptr<NcclTransport> transport, StageClock& clock);

  NcclTransport& transport() const { return *transport_; }
  /// The streams that buckets travel in.
  std::span<const CudaStream> streams() const { return transport_->streams(); }
  /// The stream that bucket k will travel in. Until its group is enqueued, work that is put there comes
  /// before the transfer.
  cudaStream_t stream_of(std::size_t k) const { return transport_->next_stream(route(k)); }
  /// Happens when what travelled last in the slot has left or arrived.
  const CudaEvent& travelled(std::size_t slot) const { return transport_->end(slot); }

  /// An update begins. With `time_each` every bucket is timed, otherwise all of them together: each event
  /// between two buckets is a gap between them.
  void begin(bool time_each) { time_each_ = time_each; }
  /// Puts the buckets of a batch that go through staging into their streams.
  void enqueue(const Schedule& schedule, Schedule::Batch batch);
  /// All batches have been enqueued.
  void enqueue_end(const Schedule& schedule);

 private:
  std::size_t route(std::size_t k) const { return routes_[rank_plan_.buckets[k].bucket]; }

  const Plan& plan_;
  const RankPlan& rank_plan_;
  const UpdateMemory& memory_;
  std::vector<std::size_t> routes_;
  std::unique_ptr<NcclTransport> transport_;
  StageClock& clock_;
  std::vector<cudaStream_t> streams_;  ///< by slot: of what travels there
  CudaEvent joined_{CudaEvent::Kind::kOrder};
  bool time_each_ = false;
};

}  // namespace weightcast
