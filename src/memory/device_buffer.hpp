#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace weightcast {

/// Memory of the current device, of unknown content at first. Its address never changes.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  /// Throws IoError when the device has not enough; `purpose` says what for.
  DeviceBuffer(std::int64_t bytes, const char* purpose);
  ~DeviceBuffer();
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  std::byte* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }

  /// Bytes that all buffers of this process hold together.
  static std::int64_t total_bytes();

 private:
  std::byte* data_ = nullptr;
  std::int64_t bytes_ = 0;
};

/// Host memory that the device copies from and to by itself.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  /// Throws IoError when the system refuses; `purpose` says what for.
  PinnedBuffer(std::int64_t bytes, const char* purpose);
  ~PinnedBuffer();
  PinnedBuffer(PinnedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  std::byte* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  std::int64_t bytes_ = 0;
};

}  // namespace weightcast
