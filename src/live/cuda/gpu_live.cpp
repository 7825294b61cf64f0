#include "live/gpu_live.hpp"

#include <cuda.h>
#include <fmt/format.h>

#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "live/live_weights.hpp"
#include "memory/device_memory.hpp"
#include "source/cuda/resident_source.hpp"
#include "sys/cuda.hpp"

namespace weightcast {

namespace {

/// Owns an opened allocation of another process.
class IpcMapping {
 public:
  IpcMapping(const Manifest& manifest, const LiveSegment& segment) {
    cudaIpcMemHandle_t handle{};
    static_assert(sizeof handle == LiveSegment::kHandleBytes);
    std::memcpy(&handle, segment.handle.data(), sizeof handle);
    const cudaError_t status = cudaIpcOpenMemHandle(&data_, handle, cudaIpcMemLazyEnablePeerAccess);
    if (status == cudaSuccess) return;
    data_ = nullptr;
    // Not an error to remember: the device is as it was.
    static_cast<void>(cudaGetLastError());
    throw IoError(fmt::format("{}: its memory on {} cannot be opened ({}); let its exporter publish again",
                              manifest.path, segment.device, cudaGetErrorString(status)));
  }
  ~IpcMapping() {
    if (data_ != nullptr) cudaIpcCloseMemHandle(data_);
  }
  IpcMapping(IpcMapping&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  IpcMapping& operator=(IpcMapping&&) = delete;
  IpcMapping(const IpcMapping&) = delete;
  IpcMapping& operator=(const IpcMapping&) = delete;

  std::byte* data() const { return static_cast<std::byte*>(data_); }

  /// Bytes of the allocation, as the driver knows them; 0 when it does not.
  std::int64_t bytes() const {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    constexpr unsigned kSince = 3020;
    WEIGHTCAST_CUDA(
        cudaGetDriverEntryPointByVersion("cuMemGetAddressRange", &entry, kSince, cudaEnableDefault, &found));
    const auto address_range = reinterpret_cast<decltype(&cuMemGetAddressRange)>(entry);
    CUdeviceptr base = 0;
    std::size_t size = 0;
    const auto address = reinterpret_cast<CUdeviceptr>(data_);
    if (address_range == nullptr || address_range(&base, &size, address) != CUDA_SUCCESS) return 0;
    return static_cast<std::int64_t>(size - (address - base));
  }

 private:
  void* data_ = nullptr;
};

class IpcMemory final : public DeviceMemory {
 public:
  IpcMemory(IpcMapping mapping, std::int64_t bytes)
      : DeviceMemory(mapping.data(), bytes), mapping_(std::move(mapping)) {}

 private:
  IpcMapping mapping_;
};

class LiveGpuSource final : public ResidentSource {
 public:
  LiveGpuSource(const Plan& plan, const Catalog& catalog, std::int64_t trainer, const HeldWeights& held,
                std::vector<std::span<std::byte>> buffers, const Exporter& exporter)
      : ResidentSource(plan, catalog, trainer, held, std::move(buffers)), exporter_(exporter) {}

  void require_unchanged() const override { require_being_read(exporter_); }

 private:
  const Exporter& exporter_;
};

}  // namespace

std::shared_ptr<Memory> open_gpu_segment(const Manifest& manifest, const LiveSegment& segment) {
  IpcMapping mapping(manifest, segment);
  // The manifest's word is not trusted: a read behind the end would end all work on the device.
  if (const std::int64_t bytes = mapping.bytes(); bytes < segment.bytes) {
    throw InputError(fmt::format("{}: its memory on {} has {} bytes and not {}; publish again", manifest.path,
                                 segment.device, bytes, segment.bytes));
  }
  return std::make_shared<IpcMemory>(std::move(mapping), segment.bytes);
}

std::unique_ptr<Source> make_live_gpu_source(const Plan& plan, const Catalog& catalog, std::int64_t trainer,
                                             const HeldWeights& held, const Exporter& exporter) {
  std::vector<std::span<std::byte>> buffers;
  for (const auto& segment : exporter.segments()) {
    buffers.emplace_back(segment->data(), static_cast<std::size_t>(segment->bytes()));
  }
  return std::make_unique<LiveGpuSource>(plan, catalog, trainer, held, std::move(buffers), exporter);
}

}  // namespace weightcast
