#include "memory/device_memory.hpp"

#include <cstring>
#include <utility>

#include "memory/device_buffer.hpp"
#include "sys/cuda.hpp"

namespace weightcast {

namespace {

class OwnDeviceMemory final : public DeviceMemory {
 public:
  explicit OwnDeviceMemory(DeviceBuffer buffer)
      : DeviceMemory(buffer.data(), buffer.bytes()), buffer_(std::move(buffer)) {}

 private:
  DeviceBuffer buffer_;
};

}  // namespace

DeviceMemory::DeviceMemory(std::byte* data, std::int64_t bytes) : data_(data), bytes_(bytes) {
  WEIGHTCAST_CUDA(cudaGetDevice(&device_));
}

void DeviceMemory::read(std::int64_t offset, std::span<std::byte> to) const {
  // Any thread may ask; one that has never used a device would make a context on the first.
  WEIGHTCAST_CUDA(cudaSetDevice(device_));
  WEIGHTCAST_CUDA(cudaMemcpy(to.data(), data_ + offset, to.size(), cudaMemcpyDeviceToHost));
}

void DeviceMemory::write(std::int64_t offset, std::span<const std::byte> from) {
  WEIGHTCAST_CUDA(cudaSetDevice(device_));
  WEIGHTCAST_CUDA(cudaMemcpy(data_ + offset, from.data(), from.size(), cudaMemcpyHostToDevice));
}

void DeviceMemory::fill(std::int64_t offset, std::int64_t bytes, std::byte value) {
  if (bytes == 0) return;
  WEIGHTCAST_CUDA(cudaMemset(data_ + offset, static_cast<int>(value), static_cast<std::size_t>(bytes)));
  WEIGHTCAST_CUDA(cudaDeviceSynchronize());
}

PeerHandle DeviceMemory::peer_handle() const {
  PeerHandle handle{PeerHandle::Kind::kIpc, 0, {}};
  if (bytes_ == 0) return handle;
  cudaIpcMemHandle_t ipc{};
  const cudaError_t status = cudaIpcGetMemHandle(&ipc, data_);
  if (status != cudaSuccess) {
    // Not an error to remember: the memory is as it was.
    static_cast<void>(cudaGetLastError());
    return {PeerHandle::Kind::kRefused, static_cast<int>(status), {}};
  }
  static_assert(sizeof ipc == sizeof handle.ipc);
  std::memcpy(handle.ipc.data(), &ipc, sizeof ipc);
  return handle;
}

std::unique_ptr<Memory> make_device_memory(std::int64_t bytes, const char* purpose) {
  return std::make_unique<OwnDeviceMemory>(DeviceBuffer(bytes, purpose));
}

}  // namespace weightcast
