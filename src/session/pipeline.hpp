#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "kernels/executor.hpp"
#include "memory/host_buffer.hpp"
#include "plan/plan.hpp"
#include "plan/share.hpp"
#include "report/progress.hpp"
#include "session/control.hpp"
#include "session/source.hpp"
#include "transport/transport.hpp"

namespace weightcast {

/// Seconds that each stage of one rank was busy during an update.
struct StageSeconds {
  double pack = 0;  ///< reading or packing, digests of what is sent included
  double transport =
      0;  ///< from the first bucket's start to the last one's end, less the waits for other stages
  double unpack = 0;
  double verify = 0;  ///< digests of what was written
};

/// The heart of an update on one rank: pack, transport and unpack of neighbouring buckets overlap over a ring
/// of staging buffers. The rank's k-th bucket uses staging buffer k mod n as soon as bucket k − n has left
/// it; every rank walks the same global order, so the earliest unfinished bucket can always move and nothing
/// can deadlock.
///
/// One thread packs, one unpacks, and the calling thread alone talks to MPI.
class Pipeline {
 public:
  /// All references must outlive the pipeline. `routes[b]` is the transport's route of plan bucket b.
  Pipeline(const Plan& plan, const Share& share, std::vector<std::size_t> routes, Transport& transport,
           Control& control, const Executor& executor);
  ~Pipeline();
  Pipeline(const Pipeline&) = delete;
  Pipeline& operator=(const Pipeline&) = delete;

  /// One update: `source` is null on a rank that is no trainer; `parameters[p]` is parameter p's memory. With
  /// verification `sent[s]` and `written[i]` receive the digests of segment s and of share.checks[i]; empty
  /// spans mean no digests. What a stage throws comes out here.
  StageSeconds run(Source* source, std::span<std::byte* const> parameters, std::span<std::uint64_t> sent,
                   std::span<std::uint64_t> written, Progress& progress);

 private:
  /// Where a bucket of the share is.
  enum class State : std::uint8_t { kWaiting, kPacked, kMoving, kArrived, kDone };

  void pack_all(const std::stop_token& stop);
  void unpack_all(const std::stop_token& stop);
  void transport_all(Progress& progress);

  /// Blocks a stage's thread until `ready` holds for bucket k; false when the update is over.
  template <typename Ready>
  bool wait_until(const std::stop_token& stop, Ready ready);
  void set_state(std::size_t k, State state);
  void worker(const std::stop_token& stop, void (Pipeline::*stage)(const std::stop_token&));
  bool slot_free(std::size_t k) const;
  std::byte* slot(std::size_t k) const;
  /// Where the messages of bucket k are sent from or received to.
  std::span<const std::span<std::byte>> runs(std::size_t k);

  const Plan& plan_;
  const Share& share_;
  std::vector<std::size_t> routes_;
  Transport& transport_;
  Control& control_;
  const Executor& executor_;
  HostBuffer ring_;

  // What the current update works on.
  Source* source_ = nullptr;
  std::span<std::byte* const> parameters_;
  std::vector<const std::byte*> written_parameters_;  ///< the same, to be read
  std::span<std::uint64_t> sent_;
  std::span<std::uint64_t> written_;
  StageSeconds seconds_;

  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::vector<std::span<std::byte>> runs_;  ///< of the bucket being started; keeps its capacity
  std::vector<State> states_;
  std::uint64_t update_ = 0;  ///< counts updates; a worker runs once for each
  int workers_busy_ = 0;
  std::exception_ptr failure_;
  std::vector<std::jthread> workers_;  // last: they end before what they use
};

}  // namespace weightcast
