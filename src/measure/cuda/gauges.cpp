#include "measure/cuda/gauges.hpp"

#include <algorithm>

#include "measure/cuda/device_time.hpp"
#include "sys/cuda.hpp"

namespace weightcast {

CudaGauges::CudaGauges(CudaPipeline& pipeline, const Share& share, Memory& parameters,
                       const ResidentSource* source)
    : pipeline_(pipeline), share_(share), parameters_(parameters), source_(source) {}

std::int64_t CudaGauges::device_bytes() const {
  return DeviceBuffer::total_bytes();
}

std::int64_t CudaGauges::source_bytes() const {
  return source_ == nullptr ? 0 : source_->bytes();
}

std::int64_t CudaGauges::wire_room(bool root) const {
  return root ? source_bytes() : parameters_.bytes();
}

void CudaGauges::open_wire(const std::vector<int>& members) {
  pipeline_.transport().open_members(members);
}

void CudaGauges::broadcast(const std::vector<int>& members, bool root, std::int64_t bytes,
                           std::int64_t step) {
  std::byte* data = root ? source_->data() : parameters_.data();
  for (std::int64_t at = 0; at < bytes; at += step) {
    pipeline_.transport().broadcast(members, members.front(), data + at,
                                    static_cast<std::size_t>(std::min(step, bytes - at)));
  }
  pipeline_.transport().wait();
}

double CudaGauges::timed(const std::function<void()>& enqueue) {
  return device_seconds(pipeline_.stream(), enqueue);
}

int CudaGauges::blocks(Grid grid) const {
  constexpr int kBlocksOfMultiprocessor = 4;
  return grid == Grid::kUpdate ? pipeline_.blocks() : kBlocksOfMultiprocessor * multiprocessors();
}

double CudaGauges::pack_seconds(Grid grid) {
  if (source_ == nullptr) return 0;
  return timed([&] {
    for (std::size_t k = 0; k < share_.buckets.size(); ++k) {
      const ShareBucket& bucket = share_.buckets[k];
      if (!bucket.root) continue;
      source_->enqueue_pack(bucket.bucket, pipeline_.buffer(k), pipeline_.scales(), nullptr, blocks(grid),
                            pipeline_.stream());
    }
  });
}

double CudaGauges::unpack_seconds(Grid grid) {
  if (parameters_.bytes() == 0) return 0;
  return timed([&] {
    for (std::size_t k = 0; k < share_.buckets.size(); ++k) {
      if (!share_.buckets[k].destination) continue;
      pipeline_.enqueue_unpack(k, pipeline_.buffer(k), blocks(grid), pipeline_.stream());
    }
  });
}

double CudaGauges::digest_seconds(Grid grid) {
  return timed([&] { pipeline_.enqueue_digests(source_, blocks(grid), pipeline_.stream()); });
}

double CudaGauges::copy_seconds() {
  if (copy_bytes() == 0) return 0;
  return timed([&] {
    WEIGHTCAST_CUDA(cudaMemcpyAsync(parameters_.data() + copy_bytes(), parameters_.data(),
                                    static_cast<std::size_t>(copy_bytes()), cudaMemcpyDeviceToDevice,
                                    pipeline_.stream()));
  });
}

std::int64_t CudaGauges::copy_bytes() const {
  constexpr std::int64_t kAlignment = 256;
  return parameters_.bytes() / 2 / kAlignment * kAlignment;
}

std::unique_ptr<GpuGauges> make_gpu_gauges(Pipeline& pipeline, const Share& share, Memory& parameters,
                                           Source* source) {
  return std::make_unique<CudaGauges>(dynamic_cast<CudaPipeline&>(pipeline), share, parameters,
                                      source == nullptr ? nullptr : source->resident());
}

}  // namespace weightcast
