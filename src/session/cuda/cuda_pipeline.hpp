#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <vector>

#include "control/control.hpp"
#include "plan/plan.hpp"
#include "plan/rank_plan.hpp"
#include "session/cuda/cuda_stages.hpp"
#include "session/pipeline.hpp"
#include "session/rounds.hpp"
#include "session/schedule.hpp"
#include "sys/cuda.hpp"
#include "transport/nccl_transport.hpp"

namespace weightcast {

/// Stages on streams of their own (cuda_stages.hpp), ordered by events alone: the host walks the schedule,
/// puts the whole update into the streams and then waits once, at its end, in one loop over the last event,
/// the wire's asynchronous errors and the deadline. Only for a source on the host does it wait for what is
/// being read, and for what other ranks write into this one's parameters until they say that it is there.
class CudaPipeline final : public Pipeline {
 public:
  /// All references must outlive the pipeline. `routes[b]` is the transport's route of plan bucket b,
  /// where that goes through staging, `parameters[p]` the device memory of parameter p. `blocks`: as for
  /// ThreadBlocks. `rounds`: as in SessionOptions; where there are any, nothing is direct.
  CudaPipeline(const Plan& plan, const RankPlan& rank_plan, const Family& family,
               std::vector<std::size_t> routes, std::vector<std::byte*> parameters,
               std::unique_ptr<NcclTransport> transport, DirectParts direct, Control& control, int blocks,
               const std::vector<std::uint32_t>& rounds);
  ~CudaPipeline() override;
  CudaPipeline(const CudaPipeline&) = delete;
  CudaPipeline& operator=(const CudaPipeline&) = delete;

  void prepare(const Source* source) override;
  std::exception_ptr run(Source* source, std::span<const GlobalScale> scales, std::span<std::uint64_t> sent,
                         std::span<std::uint64_t> written, Progress& progress) override;
  bool wire_is_broken() const override { return broken_; }
  void reopen_wire() override;
  std::span<std::byte> host_staging() override { return stages_.pack.host_buffers(); }
  std::int64_t first_dirty_padding() override { return stages_.digests.first_dirty_padding(); }
  StageSeconds stage_seconds() override;
  void trace() override { tracing_ = true; }
  std::vector<TraceSlice> slices() override;
  void poison(std::byte value) override { stages_.memory.fill_slots(value); }

  /// For a benchmark that runs them one by one, between updates.
  const CudaStages& stages() const { return stages_; }
  /// Sends and receives as an update does, whatever is in the staging slots, and waits for its end.
  /// `resident`: of an update from weights on the device.
  void transfer_staging(bool resident);

 private:
  void enqueue_all(std::span<const GlobalScale> scales);
  void enqueue_end();
  void enqueue_batch(Schedule::Batch batch);
  /// What waits until `round`, a rank's buckets, has been read.
  void enqueue_arrivals(Rounds::Range round);
  /// From this rank's weights to its parameters.
  void enqueue_local(std::size_t k);
  /// From this rank's weights to the parameters of others, or of what others write into this rank's: nothing
  /// yet.
  void enqueue_direct(std::size_t k);
  /// Tells others which direct buckets have been written, and enqueues digests of those that have arrived.
  /// Returns whether all have.
  bool exchange_direct();
  /// Enqueues the waits before bucket k travels: its slot is free and, on the root, filled.
  void enqueue_departure(std::size_t k);
  /// Enqueues the work after bucket k has travelled, on a destination.
  void enqueue_arrival(std::size_t k);
  /// Happens when bucket k may go into its slot; null when nothing has been there in this update.
  const CudaEvent* slot_free(std::size_t k) const;
  int arrival_blocks(std::size_t k) const;
  /// The streams of all stages but the digests' first, which begins and ends an update.
  template <typename Work>
  void for_each_stream(Work work);
  void wait_for_arrivals(Progress& progress);
  void wait_for_the_end(Progress& progress);
  /// One turn of a wait.
  void look_around(Progress& progress);
  /// Whether this rank has done its part of bucket k but for sending and digests.
  bool is_done(std::size_t k) const;
  /// Called in every wait. Throws when the wire has failed or the deadline is over, CalledOff when another
  /// rank's wire has failed.
  void poll();
  /// Ends everything that is in the streams.
  void break_off();

  const RankPlan& rank_plan_;
  Control& control_;
  const Rounds rounds_;
  const Schedule resident_schedule_;  ///< where this rank's weights are on the device
  const Schedule host_schedule_;      ///< where everything goes through staging
  CudaStages stages_;
  CudaEvent begun_{CudaEvent::Kind::kOrder};
  CudaEvent joined_{CudaEvent::Kind::kOrder};
  CudaEvent read_{CudaEvent::Kind::kOrder};
  CudaEvent ended_{CudaEvent::Kind::kOrder};
  bool tracing_ = false;

  // Of the last update.
  const Schedule* schedule_ = &host_schedule_;
  bool sends_ = false;
  bool broken_ = false;
  std::size_t done_ = 0;              ///< buckets of the rank plan that progress has been told of
  std::vector<std::size_t> awaited_;  ///< direct buckets that have not arrived
};

}  // namespace weightcast
