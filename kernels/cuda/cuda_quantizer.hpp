#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/device_array.hpp"
#include "kernels/move.hpp"
#include "kernels/quant_move.hpp"

namespace weightcast {

struct DeviceQuantMove;
struct QuantTile;
struct QuantKernels;

/// As many thread blocks as keep up with `blocks` of a kernel that moves, which waits for memory where a
/// quantiser computes.
constexpr int quantizer_blocks(int blocks) {
  return 3 * blocks;
}

/// Quantiser moves in device memory, addresses resolved: uploaded once, run many times. Byte for byte what
/// the host executor does, in the order of the stream; nothing here waits. The grid has `blocks` thread
/// blocks at most. All moves have the same quantiser; values, codes and scales do not overlap.
class CudaQuantPrograms {
 public:
  CudaQuantPrograms() = default;
  /// `sources[place.buffer]`, `parameters[place.buffer]` are the device memory of what a place names;
  /// staging, which begins at a multiple of 16 bytes, is named at each run.
  CudaQuantPrograms(std::span<const QuantMove> moves, std::span<const ProgramRange> programs,
                    std::span<std::byte* const> sources, std::span<std::byte* const> parameters);

  /// Runs a program: values → codes and scales, where they have a place. `scales[scope]` (device) is what
  /// moves share. Unless it is null, `digests` (device, two words for every move of all programs: codes,
  /// scales) receives in addition to what it holds the digests of what each move makes.
  void run(std::size_t program, std::byte* staging, const GlobalScale* scales, std::uint64_t* digests,
           int blocks, cudaStream_t stream) const;

  /// Raises `largest[scope]` (device, no NaN, not negative) to the largest magnitude among the values of the
  /// program's moves that have this scope; what is no number counts as zero.
  void find_largest(std::size_t program, const std::byte* staging, float* largest, int blocks,
                    cudaStream_t stream) const;

  std::size_t programs() const { return launches_.size(); }
  bool empty() const { return moves_.bytes() == 0; }
  std::int64_t device_bytes() const { return moves_.bytes() + tiles_.bytes(); }

 private:
  const QuantKernels* kernels_ = nullptr;
  DeviceArray<DeviceQuantMove> moves_;
  DeviceArray<QuantTile> tiles_;
  std::vector<ProgramRange> launches_;  ///< of the tiles
};

}  // namespace weightcast
