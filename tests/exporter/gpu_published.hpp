#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/dtype.hpp"
#include "core/shape.hpp"
#include "memory/device_buffer.hpp"
#include "weightcast/client.h"

namespace weightcast::gpu_test {

/// A tensor that a process has on its GPU.
struct GpuTensor {
  std::string name;
  DType dtype = DType::kBF16;
  Shape shape;
  std::byte* data = nullptr;  ///< the device's address

  std::int64_t bytes() const { return shape.elements() * dtype_bytes(dtype); }
};

/// Tensors on the current GPU that this process has published through the client library, as a framework
/// would have them: several in an allocation, between others.
class GpuPublished {
 public:
  /// `tensors` without addresses. Throws IoError with the client's words.
  GpuPublished(const std::string& folder, const char* role, int rank, int ranks,
               std::vector<GpuTensor> tensors);
  ~GpuPublished();
  GpuPublished(const GpuPublished&) = delete;
  GpuPublished& operator=(const GpuPublished&) = delete;

  const std::vector<GpuTensor>& tensors() const { return tensors_; }
  weightcast_export* handle() const { return export_; }

  /// Puts the manifest into the folder: values that are there now are there when somebody asks.
  void publish() const;

 private:
  std::vector<GpuTensor> tensors_;
  std::vector<DeviceBuffer> allocations_;
  weightcast_export* export_ = nullptr;
};

}  // namespace weightcast::gpu_test
