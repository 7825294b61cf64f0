#pragma once

#include <cuda_runtime_api.h>

#include <source_location>
#include <string>
#include <utility>

namespace weightcast {

/// Throws InternalError with CUDA's own text unless `status` is cudaSuccess; IoError when the device is out
/// of memory. `call` names what was called.
void check_cuda(cudaError_t status, const char* call,
                std::source_location where = std::source_location::current());

// A macro, because the text of the call belongs into the message.
#define WEIGHTCAST_CUDA(call) \
  ::weightcast::check_cuda((call), #call)  // NOLINT(cppcoreguidelines-macro-usage)

/// Devices that this process may use; 0 on a machine without a GPU or without its driver, and CUDA's word for
/// it.
int visible_devices(std::string* why_none = nullptr);

/// What identifies a physical device, whatever number a process sees it under: its PCI address.
std::string device_identity(int device);

/// `GPU-9832eea0-ced8-8bb0-9a41-9e53e9d09023`
std::string device_uuid(int device);

/// `NVIDIA H200 (0000:1b:00.0)`
std::string device_name(int device);

/// Multiprocessors of the current device.
int multiprocessors();

/// `CUDA 13.0`
std::string cuda_version();

/// Owns a stream that does not wait for the default stream.
class CudaStream {
 public:
  enum class Priority : std::uint8_t { kNormal, kHigh };

  CudaStream() = default;
  explicit CudaStream(Priority priority);
  ~CudaStream();
  CudaStream(CudaStream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  CudaStream& operator=(CudaStream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// Owns an event: a place in a stream that others wait for, with the time of day or without.
class CudaEvent {
 public:
  enum class Kind : std::uint8_t { kOrder, kTime };

  CudaEvent() = default;
  explicit CudaEvent(Kind kind);
  ~CudaEvent();
  CudaEvent(CudaEvent&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  CudaEvent& operator=(CudaEvent&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  cudaEvent_t get() const { return event_; }

  void record(cudaStream_t stream) const;
  /// Whatever is put into `stream` from now on waits for the last record.
  void hold(cudaStream_t stream) const;
  /// True when what was recorded last has happened. Never waits.
  bool reached() const;
  /// Seconds from `start` to this one; both have happened and have times.
  double seconds_since(const CudaEvent& start) const;

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace weightcast
