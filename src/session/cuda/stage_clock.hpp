#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <vector>

#include "report/trace.hpp"
#include "sys/cuda.hpp"

namespace weightcast {

/// When each stage of each bucket began and ended on the device: timed events, made once, recorded in the
/// streams and read after the update.
class StageClock {
 public:
  StageClock() = default;
  explicit StageClock(std::size_t buckets);

  /// All of an update's times count from here.
  void start(cudaStream_t stream);
  void begin(TraceStage stage, std::size_t bucket, cudaStream_t stream);
  void end(TraceStage stage, std::size_t bucket, cudaStream_t stream);

  /// The event that `end` recorded.
  const CudaEvent& ended(TraceStage stage, std::size_t bucket) const;

  /// Everything noted since `start`; `bucket` is the number given here. All of it has happened.
  std::vector<TraceSlice> slices() const;

 private:
  struct Pair {
    CudaEvent begin{CudaEvent::Kind::kTime};
    CudaEvent end{CudaEvent::Kind::kTime};
    bool noted = false;
  };
  using Lane = std::vector<Pair>;

  Pair& pair(TraceStage stage, std::size_t bucket) {
    return lanes_.at(static_cast<std::size_t>(stage)).at(bucket);
  }

  CudaEvent start_{CudaEvent::Kind::kTime};
  std::array<Lane, 4> lanes_;
};

}  // namespace weightcast
