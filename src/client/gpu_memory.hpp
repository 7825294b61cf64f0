#pragma once

#include <cstdint>

namespace weightcast::client {

/// An allocation of the CUDA driver, as another process can open it.
struct GpuAllocation {
  std::uint64_t address = 0;
  std::uint64_t bytes = 0;
  unsigned char handle[64] = {};  ///< for cuIpcOpenMemHandle
  char device[48] = "";           ///< `GPU-` and the UUID of the device
  void* context = nullptr;        ///< CUcontext in which it was made
};

/// Finds the allocation in which `bytes` bytes from `address` on lie. CUDA's driver is found at run time, in
/// the process that has the memory, and so has loaded it. Returns a code, having called fail(), with what to
/// switch off where the allocator has made memory that nobody else can open.
int find_gpu_allocation(const void* address, std::int64_t bytes, GpuAllocation* found);

/// Waits until the device has done all that was asked of it in that context.
int synchronize_context(void* context);

}  // namespace weightcast::client
