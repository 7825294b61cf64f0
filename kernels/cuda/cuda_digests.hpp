#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/device_array.hpp"
#include "kernels/cuda/tiles.hpp"
#include "kernels/executor.hpp"

namespace weightcast {

struct DeviceBox;

/// Programs of digests of boxes in device memory, addresses resolved, as those of moves (cuda_moves.hpp).
class CudaDigestPrograms {
 public:
  CudaDigestPrograms() = default;
  CudaDigestPrograms(std::span<const DigestBox> boxes, std::span<const ProgramRange> programs,
                     std::span<std::byte* const> buffers);

  /// Adds to `results[i]` the digest of box number i (of all boxes) for every box of the program.
  void run(std::size_t program, std::uint64_t* results, int blocks, cudaStream_t stream) const;

  std::int64_t device_bytes() const { return boxes_.bytes() + tiles_.bytes(); }

 private:
  DeviceArray<DeviceBox> boxes_;
  DeviceArray<DigestTile> tiles_;
  std::vector<ProgramRange> launches_;
};

}  // namespace weightcast
