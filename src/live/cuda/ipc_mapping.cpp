#include "live/cuda/ipc_mapping.hpp"

#include <fmt/format.h>

#include <cstdint>
#include <cstring>

#include "core/error.hpp"
#include "live/cuda/driver.hpp"

namespace weightcast {

IpcMapping::IpcMapping(const Manifest& manifest, const LiveSegment& segment) {
  cudaIpcMemHandle_t handle{};
  static_assert(sizeof handle == LiveSegment::kHandleBytes);
  std::memcpy(&handle, segment.handle.data(), sizeof handle);
  const cudaError_t status = cudaIpcOpenMemHandle(&data_, handle, cudaIpcMemLazyEnablePeerAccess);
  if (status != cudaSuccess) {
    // Not an error to remember: the device is as it was.
    static_cast<void>(cudaGetLastError());
    throw IoError(fmt::format("{}: its memory on {} cannot be opened ({}); let its exporter publish again",
                              manifest.path, segment.device, cudaGetErrorString(status)));
  }
  try {
    require_size(manifest, segment);
  } catch (...) {
    cudaIpcCloseMemHandle(data_);
    throw;
  }
}

IpcMapping::~IpcMapping() {
  if (data_ != nullptr) cudaIpcCloseMemHandle(data_);
}

void IpcMapping::require_size(const Manifest& manifest, const LiveSegment& segment) const {
  constexpr unsigned kSince = 3020;
  const auto address_range = driver_function<decltype(&cuMemGetAddressRange)>("cuMemGetAddressRange", kSince);
  CUdeviceptr base = 0;
  std::size_t size = 0;
  const auto address = reinterpret_cast<CUdeviceptr>(data_);
  if (address_range(&base, &size, address) != CUDA_SUCCESS) size = 0;
  const auto bytes = static_cast<std::int64_t>(size - (size == 0 ? 0 : address - base));
  // The manifest's word is not trusted: a read behind the end would end all work on the device.
  if (bytes >= segment.bytes) return;
  throw InputError(fmt::format("{}: its memory on {} has {} bytes and not {}; publish again", manifest.path,
                               segment.device, bytes, segment.bytes));
}

}  // namespace weightcast
