#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/move.hpp"

namespace weightcast {

/// Programs of moves for the device's copy engines: each is one run of bytes from the weights to a parameter,
/// long enough to be worth it.
class EngineCopies {
 public:
  /// Whether this build can give the engines many copies at once; one by one they are slower than a kernel.
  static bool pays();
  /// Whether a move may go this way.
  static bool takes(const Move& move);

  EngineCopies() = default;
  /// As CudaMovePrograms, whose staging is `weights` here.
  EngineCopies(std::span<const Move> moves, std::span<const ProgramRange> programs,
               std::span<std::byte* const> buffers, std::byte* weights);

  /// Whether a program has anything to copy.
  bool has(std::size_t program) const { return program < programs_.size() && programs_[program].count > 0; }
  void run(std::size_t program, cudaStream_t stream) const;

 private:
  std::vector<void*> to_;
  std::vector<const void*> from_;
  std::vector<std::size_t> bytes_;
  std::vector<ProgramRange> programs_;
};

}  // namespace weightcast
