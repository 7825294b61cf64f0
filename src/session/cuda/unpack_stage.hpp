#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "kernels/cuda/cuda_moves.hpp"
#include "kernels/cuda/cuda_quantizer.hpp"
#include "plan/plan.hpp"
#include "plan/rank_plan.hpp"
#include "session/cuda/stage_clock.hpp"
#include "session/cuda/update_memory.hpp"
#include "sys/cuda.hpp"

namespace weightcast {

/// Brings what has arrived from staging slots into the parameters, where it quantises what arrived as values.
class UnpackStage {
 public:
  /// `memory` and `clock` must outlive the stage. `parameters[p]` is the device memory of parameter p.
  UnpackStage(const Plan& plan, const RankPlan& rank_plan, const UpdateMemory& memory,
              std::span<std::byte* const> parameters, StageClock& clock);

  cudaStream_t stream() const { return stream_.get(); }
  /// Happens when what arrived last in the slot has been unpacked.
  const CudaEvent& unpacked(std::size_t slot) const { return unpacked_[slot]; }

  /// Unpacks bucket k of the rank plan from a slot.
  void enqueue(std::size_t k, std::size_t slot, int blocks);
  /// Its kernels alone, in any stream.
  void run(std::size_t k, std::size_t slot, int blocks, cudaStream_t stream) const;

 private:
  const UpdateMemory& memory_;
  StageClock& clock_;
  CudaMovePrograms moves_;  ///< by bucket of the rank plan
  CudaQuantPrograms quants_;
  CudaStream stream_{CudaStream::Priority::kNormal};
  std::vector<CudaEvent> unpacked_;  ///< by slot
};

}  // namespace weightcast
