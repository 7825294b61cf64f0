#pragma once

#include <functional>

#include "sys/cuda.hpp"

namespace weightcast {

/// Seconds on the device from where `stream` stands now to the end of what `enqueue` puts into it. Waits.
inline double device_seconds(cudaStream_t stream, const std::function<void()>& enqueue) {
  const CudaEvent begin(CudaEvent::Kind::kTime);
  const CudaEvent end(CudaEvent::Kind::kTime);
  begin.record(stream);
  enqueue();
  end.record(stream);
  WEIGHTCAST_CUDA(cudaStreamSynchronize(stream));
  return end.seconds_since(begin);
}

}  // namespace weightcast
