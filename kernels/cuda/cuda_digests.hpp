#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/cuda_moves.hpp"
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
  friend class CudaDigestedMoves;

  /// The digest of box i is added to that with number `results[i]`.
  CudaDigestPrograms(std::span<const DigestBox> boxes, std::span<const ProgramRange> programs,
                     std::span<std::byte* const> buffers, std::span<const std::uint32_t> results);
  void set(std::span<const DigestBox> boxes, std::span<const ProgramRange> programs,
           std::span<const DeviceBox> resolved);
  template <bool Copies>
  void launch(std::size_t program, std::uint64_t* results, std::byte* staging, int blocks,
              cudaStream_t stream) const;

  DeviceArray<DeviceBox> boxes_;
  DeviceArray<DigestTile> tiles_;
  std::vector<ProgramRange> launches_;
};

/// Moves of which digests of what they read are wanted, and all boxes of which there are digests.
struct DigestedMoves {
  std::span<const Move> moves;
  std::span<const ProgramRange> move_programs;
  std::span<const DigestBox> boxes;
  std::span<const ProgramRange> box_programs;
  /// Of each move the number of the box that it reads, neither more nor less; −1: none.
  std::span<const std::int64_t> box_of_move;
};

/// Programs of moves that digest what they read, where both sides of a move can be reached 16 bytes at once,
/// so that it is read once; and of the digests that are left.
class CudaDigestedMoves {
 public:
  enum class Into : std::uint8_t {
    kStaging,  ///< packs: moves read the digests' buffers
    kBuffers,  ///< unpacks, from buffers of the digests that lie in place of staging
  };

  CudaDigestedMoves() = default;
  /// `buffers` are those of the moves, `digested` those of the boxes.
  CudaDigestedMoves(Into into, const DigestedMoves& all, std::span<std::byte* const> buffers,
                    std::span<std::byte* const> digested);

  /// Does a program's moves, and adds the digests of some boxes to `results`, which are numbered as boxes.
  void run(std::size_t program, std::byte* staging, std::uint64_t* results, int blocks,
           cudaStream_t stream) const;
  /// Adds those of the other boxes.
  void run_rest(std::size_t program, std::uint64_t* results, int blocks, cudaStream_t stream) const {
    rest_.run(program, results, blocks, stream);
  }

 private:
  Into into_ = Into::kStaging;
  CudaDigestPrograms copies_;
  CudaMovePrograms moves_;
  CudaDigestPrograms rest_;
};

}  // namespace weightcast
