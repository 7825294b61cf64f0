#include "sys/cuda.hpp"

#include <fmt/format.h>

#include <array>

#include "core/error.hpp"

namespace weightcast {

void check_cuda(cudaError_t status, const char* call, std::source_location where) {
  if (status == cudaSuccess) return;
  if (status == cudaErrorMemoryAllocation) {
    throw IoError(
        fmt::format("{}: out of device memory; use more GPUs, a larger tp or a smaller --bucket-size", call));
  }
  throw InternalError(fmt::format("{}: {}", call, cudaGetErrorString(status)), where);
}

int visible_devices(std::string* why_none) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess) return count;
  if (why_none != nullptr) *why_none = cudaGetErrorString(status);
  // Not an error to remember: there is no GPU here.
  static_cast<void>(cudaGetLastError());
  return 0;
}

std::string device_identity(int device) {
  std::array<char, 32> address{};
  WEIGHTCAST_CUDA(cudaDeviceGetPCIBusId(address.data(), static_cast<int>(address.size()), device));
  return address.data();
}

std::string device_uuid(int device) {
  cudaDeviceProp properties{};
  WEIGHTCAST_CUDA(cudaGetDeviceProperties(&properties, device));
  std::string text = "GPU-";
  for (std::size_t i = 0; i < sizeof properties.uuid.bytes; ++i) {
    const bool dash = i == 4 || i == 6 || i == 8 || i == 10;
    text += fmt::format("{}{:02x}", dash ? "-" : "", static_cast<unsigned char>(properties.uuid.bytes[i]));
  }
  return text;
}

std::string device_name(int device) {
  cudaDeviceProp properties{};
  WEIGHTCAST_CUDA(cudaGetDeviceProperties(&properties, device));
  return fmt::format("{} ({})", properties.name, device_identity(device));
}

int multiprocessors() {
  int device = 0;
  int count = 0;
  WEIGHTCAST_CUDA(cudaGetDevice(&device));
  WEIGHTCAST_CUDA(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

std::string cuda_version() {
  int version = 0;
  WEIGHTCAST_CUDA(cudaRuntimeGetVersion(&version));
  return fmt::format("CUDA {}.{}", version / 1000, version % 1000 / 10);
}

CudaStream::CudaStream(Priority priority) {
  int least = 0;
  int greatest = 0;
  WEIGHTCAST_CUDA(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  WEIGHTCAST_CUDA(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking,
                                               priority == Priority::kHigh ? greatest : least));
}

CudaStream::~CudaStream() {
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

CudaEvent::CudaEvent(Kind kind) {
  WEIGHTCAST_CUDA(
      cudaEventCreateWithFlags(&event_, kind == Kind::kTime ? cudaEventDefault : cudaEventDisableTiming));
}

CudaEvent::~CudaEvent() {
  if (event_ != nullptr) cudaEventDestroy(event_);
}

void CudaEvent::record(cudaStream_t stream) const {
  WEIGHTCAST_CUDA(cudaEventRecord(event_, stream));
}

void CudaEvent::hold(cudaStream_t stream) const {
  WEIGHTCAST_CUDA(cudaStreamWaitEvent(stream, event_, 0));
}

bool CudaEvent::reached() const {
  const cudaError_t status = cudaEventQuery(event_);
  if (status == cudaErrorNotReady) return false;
  check_cuda(status, "cudaEventQuery");
  return true;
}

double CudaEvent::seconds_since(const CudaEvent& start) const {
  float milliseconds = 0;
  WEIGHTCAST_CUDA(cudaEventElapsedTime(&milliseconds, start.event_, event_));
  return static_cast<double>(milliseconds) / 1e3;
}

}  // namespace weightcast
