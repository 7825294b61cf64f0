#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/cuda_digests.hpp"
#include "kernels/cuda/cuda_moves.hpp"
#include "kernels/cuda/cuda_quantizer.hpp"
#include "plan/rank_plan.hpp"
#include "session/cuda/stage_clock.hpp"
#include "session/cuda/update_memory.hpp"
#include "session/schedule.hpp"
#include "source/cuda/resident_source.hpp"
#include "sys/cuda.hpp"

namespace weightcast {

/// Brings local buckets from this rank's weights into its parameters without staging.
class LocalStage {
 public:
  /// All references must outlive the stage. `schedule` is that of a resident source, `parameters[p]` the
  /// device memory of parameter p.
  LocalStage(const RankPlan& rank_plan, const Schedule& schedule, const UpdateMemory& memory,
             std::vector<std::byte*> parameters, StageClock& clock);

  cudaStream_t stream() const { return stream_.get(); }

  /// Makes `source` the source of what is enqueued from now on, and compiles its programs unless it is the
  /// same as before.
  void prepare(const ResidentSource& source);
  /// Moves and quantises bucket k of the rank plan, which is local. Unless `results` is null, what can be
  /// read and written 16 bytes at once has the digests of what is sent made on the way, which are added
  /// there; they are numbered as ResidentSource::sent_digests().
  void enqueue(std::size_t k, std::uint64_t* results, int blocks);
  /// Adds the other digests, but for those of what is quantised.
  void run_rest(std::size_t k, std::uint64_t* results, int blocks, cudaStream_t stream) const {
    digested_moves_.run_rest(k, results, blocks, stream);
  }

 private:
  const RankPlan& rank_plan_;
  const Schedule& schedule_;
  const UpdateMemory& memory_;
  std::vector<std::byte*> parameters_;
  StageClock& clock_;
  CudaStream stream_{CudaStream::Priority::kNormal};

  std::uint64_t source_ = 0;  ///< its number; 0: none yet
  std::byte* weights_ = nullptr;
  CudaMovePrograms moves_;  ///< by bucket of the rank plan
  CudaDigestedMoves digested_moves_;
  CudaQuantPrograms quants_;
};

}  // namespace weightcast
