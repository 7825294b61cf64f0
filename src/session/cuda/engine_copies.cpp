#include "session/cuda/engine_copies.hpp"

#include "core/error.hpp"
#include "sys/cuda.hpp"

namespace weightcast {

namespace {

constexpr std::int64_t kLeastBytes = 512 << 10;

}  // namespace

bool EngineCopies::pays() {
  return CUDART_VERSION >= 13000;
}

bool EngineCopies::takes(const Move& move) {
  return move.op == MoveOp::kCopy && move.dense() && move.bytes() >= kLeastBytes;
}

EngineCopies::EngineCopies(std::span<const Move> moves, std::span<const ProgramRange> programs,
                           std::span<std::byte* const> buffers, std::byte* weights)
    : programs_(programs.begin(), programs.end()) {
  for (const Move& move : moves) {
    to_.push_back(buffers[move.buffer] + move.offset);
    from_.push_back(weights + move.staging);
    bytes_.push_back(static_cast<std::size_t>(move.bytes()));
  }
}

void EngineCopies::run(std::size_t program, cudaStream_t stream) const {
  const ProgramRange range = programs_[program];
  if (range.count == 0) return;
#if CUDART_VERSION >= 13000
  cudaMemcpyAttributes attributes{};
  attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  attributes.flags = cudaMemcpyFlagPreferOverlapWithCompute;
  std::size_t first = 0;
  WEIGHTCAST_CUDA(cudaMemcpyBatchAsync(to_.data() + range.first, from_.data() + range.first,
                                       bytes_.data() + range.first, range.count, &attributes, &first, 1,
                                       stream));
#else
  static_cast<void>(stream);
  throw InternalError("copies for engines that take no batches");
#endif
}

}  // namespace weightcast
