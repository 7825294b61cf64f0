#pragma once

#include <cstdint>

namespace weightcast::client {

/// An allocation of the CUDA driver, as another process can open it.
struct GpuAllocation {
  std::uint64_t address = 0;
  std::uint64_t bytes = 0;
  bool has_handle = false;        ///< for cuIpcOpenMemHandle; else a file descriptor has to be made of it
  unsigned char handle[64] = {};  ///< that one
  char device[48] = "";           ///< `GPU-` and the UUID of the device
  void* context = nullptr;        ///< CUcontext whose work may use it
};

/// Finds the allocation in which `address` lies: memory of cudaMalloc, or one of the pieces of physical
/// memory that an allocator has mapped one behind the other. CUDA's driver is found at run time, in the
/// process that has the memory, and so has loaded it. Returns a code, having called fail().
int find_gpu_allocation(std::uint64_t address, GpuAllocation* found);

/// A file descriptor that stands for an allocation without a handle. Returns a code, having called fail()
/// with what to switch off where its allocator has made it so that no other process can open it.
int export_gpu_allocation(const GpuAllocation& allocation, int* file);

/// Waits until the device has done all that was asked of it in that context.
int synchronize_context(void* context);

}  // namespace weightcast::client
