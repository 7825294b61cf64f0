#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

namespace weightcast {

/// Page-aligned host memory, zero at first, on huge pages where the system grants them. Its address never
/// changes.
class HostBuffer {
 public:
  HostBuffer() = default;
  /// Throws IoError when the system refuses; `purpose` says what for.
  HostBuffer(std::int64_t bytes, const char* purpose);
  ~HostBuffer();
  HostBuffer(HostBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  HostBuffer& operator=(HostBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  HostBuffer(const HostBuffer&) = delete;
  HostBuffer& operator=(const HostBuffer&) = delete;

  std::byte* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }
  std::span<std::byte> span() const { return {data_, static_cast<std::size_t>(bytes_)}; }

 private:
  std::byte* data_ = nullptr;
  std::int64_t bytes_ = 0;
};

}  // namespace weightcast
