#include "session/cuda/update_memory.hpp"

namespace weightcast {

UpdateMemory::UpdateMemory(const Plan& plan)
    : slots_(static_cast<std::size_t>(plan.limits.buffers)),
      slot_bytes_(plan.slot_bytes),
      ring_(plan.staging_bytes_per_rank(), "the staging buffers"),
      scales_(static_cast<std::int64_t>(plan.scopes.size() * sizeof(GlobalScale)), "scales") {}

void UpdateMemory::fill_slots(std::byte value) {
  WEIGHTCAST_CUDA(cudaMemset(ring_.data(), static_cast<int>(value), static_cast<std::size_t>(ring_.bytes())));
  WEIGHTCAST_CUDA(cudaDeviceSynchronize());
}

void UpdateMemory::enqueue_scales(std::span<const GlobalScale> scales, cudaStream_t stream) {
  if (scales.empty()) return;
  WEIGHTCAST_CUDA(
      cudaMemcpyAsync(scales_.data(), scales.data(), scales.size_bytes(), cudaMemcpyHostToDevice, stream));
}

}  // namespace weightcast
