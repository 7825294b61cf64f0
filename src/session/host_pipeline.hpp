#pragma once

#include <chrono>
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
#include "kernels/executor.hpp"
#include "memory/host_buffer.hpp"
#include "plan/plan.hpp"
#include "plan/rank_plan.hpp"
#include "session/handover.hpp"
#include "session/pipeline.hpp"
#include "session/rounds.hpp"
#include "session/staging_slots.hpp"
#include "transport/transport.hpp"

namespace weightcast {

/// One thread packs, one unpacks, and the calling thread alone talks to MPI. When a stage has failed, its
/// thread works no more but lets the buckets pass. After an update that threw, messages under way are not
/// cancelled: `run` throws InternalError where it finds such.
class HostPipeline final : public Pipeline {
 public:
  /// All references must outlive the pipeline. `routes[b]` is the transport's route of plan bucket b,
  /// `parameters[p]` the memory of parameter p. `rounds`: of a rank whose weights these are. `handover`
  /// brings those through a window that lie in one; null where this rank has none. `windows`: some rank has
  /// one, and what was sent has to be known when a bucket arrives, so that in a verified update its digests
  /// travel behind it.
  HostPipeline(const Plan& plan, const RankPlan& rank_plan, std::vector<std::size_t> routes,
               std::vector<std::byte*> parameters, std::unique_ptr<Transport> transport, Control& control,
               Rounds rounds = {}, std::unique_ptr<Handover> handover = nullptr, bool windows = false);
  ~HostPipeline() override;
  HostPipeline(const HostPipeline&) = delete;
  HostPipeline& operator=(const HostPipeline&) = delete;

  void prepare(const Source* /*source*/) override {}
  std::exception_ptr run(Source* source, std::span<const GlobalScale> scales, std::span<std::uint64_t> sent,
                         std::span<std::uint64_t> written, Progress& progress) override;
  std::span<std::byte> host_staging() override { return ring_.span(); }
  std::int64_t first_dirty_padding() override;
  StageSeconds stage_seconds() override { return seconds_; }
  void trace() override;
  std::vector<TraceSlice> slices() override { return slices_; }
  void poison(std::byte value) override;

 private:
  using Clock = std::chrono::steady_clock;

  /// Where a bucket of the rank plan is.
  enum class State : std::uint8_t { kWaiting, kPacked, kMoving, kArrived, kDone };

  void pack_all(const std::stop_token& stop);
  void unpack_all(const std::stop_token& stop);
  void transport_all(Progress& progress);

  /// Blocks a stage's thread until `ready` holds for bucket k; false when the update is over.
  template <typename Ready>
  bool wait_until(const std::stop_token& stop, Ready ready);
  /// Runs what a stage does with a bucket, unless the update has failed; what it throws is its failure.
  /// Whether all is well.
  template <typename Work>
  bool work(Work work);
  /// Polls until no stage's thread works on the update any more.
  void wait_for_workers();
  /// Throws InternalError when messages of an update that failed are still under way.
  void require_idle_transport();
  void set_state(std::size_t k, State state);
  void worker(const std::stop_token& stop, void (HostPipeline::*stage)(const std::stop_token&));
  bool slot_free(std::size_t k) const;
  /// Whether bucket k may begin to move.
  bool may_start(std::size_t k) const;
  /// Begins to move it.
  void start(std::size_t k);
  /// Returns when the engine has taken all that came through its window, or the update has failed.
  void wait_for_loader(Progress& progress);
  /// The digests of a bucket that this rank receives, as its root has sent them.
  std::span<const std::uint64_t> expected_of(const RankBucket& bucket) const;
  /// Whether all that this rank sends in the round of bucket k has left its memory.
  bool round_is_sent(std::size_t k) const;
  std::byte* slot(std::size_t k) const;
  /// Where the messages of bucket k are sent from or received to. `in_place`: what may go straight to the
  /// parameters does.
  std::span<const std::span<std::byte>> runs(std::size_t k, bool in_place);
  /// Seconds since `start`, which are bucket k's in that stage.
  double note(TraceStage stage, std::size_t k, Clock::time_point start);

  const Plan& plan_;
  const RankPlan& rank_plan_;
  std::vector<std::size_t> routes_;
  std::vector<std::byte*> parameters_;
  std::vector<const std::byte*> written_parameters_;  ///< the same, to be read
  std::unique_ptr<Transport> transport_;
  Control& control_;
  Rounds rounds_;
  std::unique_ptr<Handover> handover_;
  bool windows_;
  std::unique_ptr<Executor> executor_;
  HostBuffer ring_;
  StagingSlots slots_;  ///< of all buckets

  // What the current update works on.
  Source* source_ = nullptr;
  std::span<const GlobalScale> scales_;
  std::span<std::uint64_t> sent_;
  std::span<std::uint64_t> written_;
  std::vector<std::uint64_t> arrived_;  ///< as sent_, of what others have sent; empty without windows
  StageSeconds seconds_;
  Clock::time_point start_;
  bool tracing_ = false;
  std::mutex slices_mutex_;
  std::vector<TraceSlice> slices_;
  std::vector<Clock::time_point> started_;  ///< of the bucket in each staging buffer, when tracing
  std::vector<BegunBucket> begun_;          ///< by staging buffer

  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::vector<std::span<std::byte>> runs_;  ///< of the bucket being started; keeps its capacity
  std::vector<State> states_;
  std::uint64_t update_ = 0;  ///< counts updates; a worker runs once for each
  std::size_t workers_busy_ = 0;
  std::exception_ptr failure_;         ///< of a stage in the current update
  bool abandoned_ = false;             ///< nobody moves the current update's buckets any more
  std::vector<std::jthread> workers_;  // last: they end before what they use
};

}  // namespace weightcast
