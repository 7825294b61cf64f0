#include "exporter/gpu_published.hpp"

#include <span>
#include <utility>

#include "core/units.hpp"
#include "support/client_call.hpp"

namespace weightcast::gpu_test {

using test_support::check;

GpuPublished::GpuPublished(const std::string& folder, const char* role, int rank, int ranks,
                           std::vector<GpuTensor> tensors)
    : tensors_(std::move(tensors)) {
  constexpr std::int64_t kAlignment = 512;
  std::int64_t all = 0;
  for (const GpuTensor& tensor : tensors_) all += round_up(tensor.bytes(), kAlignment);
  check(weightcast_open(folder.c_str(), role, rank, ranks, nullptr, &export_));
  // About four allocations, of neighbours.
  const std::int64_t most = all / 4;
  for (std::size_t first = 0; first < tensors_.size();) {
    std::size_t last = first;
    std::int64_t bytes = 0;
    while (last < tensors_.size() && bytes <= most) {
      bytes += round_up(tensors_[last++].bytes(), kAlignment);
    }
    std::byte* at = allocations_.emplace_back(bytes, "published tensors").data();
    for (; first < last; ++first) {
      GpuTensor& tensor = tensors_[first];
      tensor.data = at;
      at += round_up(tensor.bytes(), kAlignment);
      int segment = 0;
      std::int64_t offset = 0;
      check(weightcast_add_gpu_memory(export_, tensor.data, tensor.bytes(), &segment, &offset));
      const std::span<const std::int64_t> extents = tensor.shape.extents();
      check(weightcast_add_entry(export_, tensor.name.c_str(),
                                 std::string(dtype_safetensors_name(tensor.dtype)).c_str(),
                                 static_cast<int>(extents.size()), extents.data(), nullptr, segment, offset));
    }
  }
}

GpuPublished::~GpuPublished() {
  constexpr double kSeconds = 10;
  weightcast_close(export_, kSeconds);
}

void GpuPublished::publish() const {
  check(weightcast_publish(export_));
}

}  // namespace weightcast::gpu_test
