#include "memory/device_buffer.hpp"
#include "memory/memory.hpp"
#include "sys/cuda.hpp"

namespace weightcast {

namespace {

class DeviceMemory final : public Memory {
 public:
  DeviceMemory(std::int64_t bytes, const char* purpose) : buffer_(bytes, purpose) {
    WEIGHTCAST_CUDA(cudaGetDevice(&device_));
  }

  std::byte* data() const override { return buffer_.data(); }
  std::int64_t bytes() const override { return buffer_.bytes(); }
  bool on_host() const override { return false; }
  void read(std::int64_t offset, std::span<std::byte> to) const override {
    // Any thread may ask; one that has never used a device would make a context on the first.
    WEIGHTCAST_CUDA(cudaSetDevice(device_));
    WEIGHTCAST_CUDA(cudaMemcpy(to.data(), buffer_.data() + offset, to.size(), cudaMemcpyDeviceToHost));
  }
  void write(std::int64_t offset, std::span<const std::byte> from) override {
    WEIGHTCAST_CUDA(cudaSetDevice(device_));
    WEIGHTCAST_CUDA(cudaMemcpy(buffer_.data() + offset, from.data(), from.size(), cudaMemcpyHostToDevice));
  }
  void fill(std::int64_t offset, std::int64_t bytes, std::byte value) override {
    if (bytes == 0) return;
    WEIGHTCAST_CUDA(cudaMemset(data() + offset, static_cast<int>(value), static_cast<std::size_t>(bytes)));
    WEIGHTCAST_CUDA(cudaDeviceSynchronize());
  }

 private:
  DeviceBuffer buffer_;
  int device_ = 0;
};

}  // namespace

std::unique_ptr<Memory> make_device_memory(std::int64_t bytes, const char* purpose) {
  return std::make_unique<DeviceMemory>(bytes, purpose);
}

}  // namespace weightcast
