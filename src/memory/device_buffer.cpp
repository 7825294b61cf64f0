#include "memory/device_buffer.hpp"

#include <fmt/format.h>

#include <atomic>

#include "core/error.hpp"
#include "core/units.hpp"
#include "sys/cuda.hpp"

namespace weightcast {

namespace {

std::atomic<std::int64_t> total = 0;

}  // namespace

DeviceBuffer::DeviceBuffer(std::int64_t bytes, const char* purpose) : bytes_(bytes) {
  if (bytes == 0) return;
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, static_cast<std::size_t>(bytes));
  if (status != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    throw IoError(fmt::format(
        "no {} of device memory for {}: {}; use more GPUs, a larger tp or a smaller --bucket-size",
        format_bytes(bytes), purpose, cudaGetErrorString(status)));
  }
  data_ = static_cast<std::byte*>(memory);
  total += bytes;
}

DeviceBuffer::~DeviceBuffer() {
  if (data_ == nullptr) return;
  cudaFree(data_);
  total -= bytes_;
}

std::int64_t DeviceBuffer::total_bytes() {
  return total;
}

PinnedBuffer::PinnedBuffer(std::int64_t bytes, const char* purpose) : bytes_(bytes) {
  if (bytes == 0) return;
  void* memory = nullptr;
  const cudaError_t status = cudaHostAlloc(&memory, static_cast<std::size_t>(bytes), cudaHostAllocPortable);
  if (status != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    throw IoError(fmt::format(
        "no {} of pinned host memory for {}: {}; use fewer ranks a node or a smaller --bucket-size",
        format_bytes(bytes), purpose, cudaGetErrorString(status)));
  }
  data_ = static_cast<std::byte*>(memory);
}

PinnedBuffer::~PinnedBuffer() {
  if (data_ != nullptr) cudaFreeHost(data_);
}

}  // namespace weightcast
