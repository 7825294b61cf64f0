#pragma once

#include <cuda.h>

#include "core/error.hpp"
#include "sys/cuda.hpp"

namespace weightcast {

/// A function of CUDA's driver interface, which the program does not link: `name` as it was in version
/// `since` (1000 × major + 10 × minor). Throws InternalError where the driver is older.
template <typename Function>
Function driver_function(const char* name, unsigned since) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found{};
  WEIGHTCAST_CUDA(cudaGetDriverEntryPointByVersion(name, &entry, since, cudaEnableDefault, &found));
  if (entry == nullptr) throw InternalError(std::string("CUDA's driver has no ") + name);
  return reinterpret_cast<Function>(entry);
}

}  // namespace weightcast
