#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/device_array.hpp"
#include "kernels/cuda/tiles.hpp"
#include "kernels/executor.hpp"
#include "kernels/move.hpp"

namespace weightcast {

struct DeviceMove;

/// Programs of moves in device memory, addresses resolved: uploaded once, run many times. Byte for byte what
/// the host executor does, in the order of the stream; nothing here waits. The grid has `blocks` thread
/// blocks at most, because transfers run beside it and need multiprocessors too.
class CudaMovePrograms {
 public:
  CudaMovePrograms() = default;
  /// `buffers[move.buffer]` is the device memory of that buffer.
  CudaMovePrograms(std::span<const Move> moves, std::span<const ProgramRange> programs,
                   std::span<std::byte* const> buffers);

  /// Numbered buffers → staging. All addresses are the device's.
  void pack(std::size_t program, std::byte* staging, int blocks, cudaStream_t stream) const;
  /// Staging → numbered buffers.
  void unpack(std::size_t program, const std::byte* staging, int blocks, cudaStream_t stream) const;

  /// Lowers `*result` to the number of the first move whose region in its buffer is not all zero.
  void find_not_zero(std::size_t program, unsigned* result, int blocks, cudaStream_t stream) const;

  std::int64_t device_bytes() const { return moves_.bytes() + tiles_.bytes(); }

 private:
  DeviceArray<DeviceMove> moves_;
  DeviceArray<Tile> tiles_;
  std::vector<ProgramRange> launches_;  ///< of the tiles
};

}  // namespace weightcast
