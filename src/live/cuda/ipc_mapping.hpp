#pragma once

#include <cstddef>
#include <utility>

#include "live/manifest.hpp"

namespace weightcast {

/// Owns an allocation of another process, opened by its handle on the current device.
class IpcMapping {
 public:
  /// Throws IoError naming the manifest when CUDA refuses, InputError when the allocation is smaller than the
  /// segment.
  IpcMapping(const Manifest& manifest, const LiveSegment& segment);
  ~IpcMapping();
  IpcMapping(IpcMapping&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  IpcMapping& operator=(IpcMapping&&) = delete;
  IpcMapping(const IpcMapping&) = delete;
  IpcMapping& operator=(const IpcMapping&) = delete;

  std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
  void require_size(const Manifest& manifest, const LiveSegment& segment) const;

  void* data_ = nullptr;
};

}  // namespace weightcast
