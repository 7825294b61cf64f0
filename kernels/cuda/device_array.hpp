#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>
#include <type_traits>

#include "memory/device_buffer.hpp"
#include "sys/cuda.hpp"

namespace weightcast {

/// An array that was written on the host and is read on the device.
template <typename Element>
class DeviceArray {
 public:
  DeviceArray() = default;
  /// Copies `elements`; they may go afterwards.
  explicit DeviceArray(std::span<const Element> elements)
      : buffer_(static_cast<std::int64_t>(elements.size_bytes()), "the programs") {
    static_assert(std::is_trivially_copyable_v<Element>);
    if (elements.empty()) return;
    WEIGHTCAST_CUDA(
        cudaMemcpy(buffer_.data(), elements.data(), elements.size_bytes(), cudaMemcpyHostToDevice));
    // It may return while the last bytes are on their way, and streams of our own do not wait for them.
    WEIGHTCAST_CUDA(cudaStreamSynchronize(nullptr));
  }

  const Element* data() const { return reinterpret_cast<const Element*>(buffer_.data()); }
  std::int64_t bytes() const { return buffer_.bytes(); }

 private:
  DeviceBuffer buffer_;
};

}  // namespace weightcast
