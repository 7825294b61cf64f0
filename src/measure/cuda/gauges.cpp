#include "measure/cuda/gauges.hpp"

#include <algorithm>

#include "measure/cuda/device_time.hpp"

namespace weightcast {

CudaGauges::CudaGauges(CudaPipeline& pipeline, const RankPlan& rank_plan, Memory& parameters,
                       const ResidentSource* source, bool own_wire)
    : pipeline_(pipeline),
      stages_(pipeline.stages()),
      rank_plan_(rank_plan),
      parameters_(parameters),
      source_(source) {
  constexpr std::int64_t kGiB = std::int64_t{1} << 30;
  if (own_wire) wire_ = DeviceBuffer(kGiB, "what travels while the wire is measured");
}

std::int64_t CudaGauges::device_bytes() const {
  return DeviceBuffer::total_bytes() - wire_.bytes();
}

std::int64_t CudaGauges::source_bytes() const {
  return source_ == nullptr || own_wire() ? 0 : static_cast<std::int64_t>(source_->buffers().front().size());
}

std::int64_t CudaGauges::wire_room(bool root) const {
  return root ? source_bytes() : parameters_.bytes();
}

void CudaGauges::open_wire(const std::vector<int>& members) {
  stages_.wire.transport().open_members(members);
}

void CudaGauges::broadcast(const std::vector<int>& members, bool root, std::int64_t bytes,
                           std::int64_t step) {
  NcclTransport& transport = stages_.wire.transport();
  std::byte* const weights = root && !own_wire() ? source_->buffers().front().data() : parameters_.data();
  for (std::int64_t at = 0; at < bytes; at += step) {
    transport.broadcast(members, members.front(), own_wire() ? wire_.data() : weights + at,
                        static_cast<std::size_t>(std::min(step, bytes - at)));
  }
  transport.wait();
}

double CudaGauges::timed(const std::function<void()>& enqueue) {
  return device_seconds(stream_.get(), enqueue);
}

int CudaGauges::blocks(Grid grid) const {
  return grid == Grid::kUpdate ? stages_.blocks.beside_transfers : stages_.blocks.alone;
}

double CudaGauges::pack_seconds(Grid grid) {
  if (source_ == nullptr) return 0;
  return timed([&] {
    for (std::size_t k = 0; k < rank_plan_.buckets.size(); ++k) {
      const RankBucket& bucket = rank_plan_.buckets[k];
      if (!bucket.root) continue;
      source_->enqueue_pack(bucket.bucket, stages_.memory.slot(k), stages_.memory.scales(), nullptr,
                            blocks(grid), stream_.get());
    }
  });
}

double CudaGauges::unpack_seconds(Grid grid) {
  if (parameters_.bytes() == 0) return 0;
  return timed([&] {
    for (std::size_t k = 0; k < rank_plan_.buckets.size(); ++k) {
      if (rank_plan_.buckets[k].destination) stages_.unpack.run(k, k, blocks(grid), stream_.get());
    }
  });
}

double CudaGauges::digest_seconds(Grid grid) {
  return timed([&] {
    for (std::size_t k = 0; k < rank_plan_.buckets.size(); ++k) {
      const RankBucket& bucket = rank_plan_.buckets[k];
      if (bucket.root && source_ != nullptr) {
        stages_.digests.run_sent(k, *source_, ResidentSource::Digests::kAll, blocks(grid), stream_.get());
      }
      if (bucket.destination) stages_.digests.run_written(k, blocks(grid), stream_.get());
    }
  });
}

double CudaGauges::copy_seconds() {
  if (copy_bytes() == 0) return 0;
  return timed([&] {
    WEIGHTCAST_CUDA(cudaMemcpyAsync(parameters_.data() + copy_bytes(), parameters_.data(),
                                    static_cast<std::size_t>(copy_bytes()), cudaMemcpyDeviceToDevice,
                                    stream_.get()));
  });
}

std::int64_t CudaGauges::copy_bytes() const {
  constexpr std::int64_t kAlignment = 256;
  return parameters_.bytes() / 2 / kAlignment * kAlignment;
}

std::unique_ptr<GpuGauges> make_gpu_gauges(Pipeline& pipeline, const RankPlan& rank_plan, Memory& parameters,
                                           Source* source, bool own_wire) {
  return std::make_unique<CudaGauges>(dynamic_cast<CudaPipeline&>(pipeline), rank_plan, parameters,
                                      source == nullptr ? nullptr : source->resident(), own_wire);
}

}  // namespace weightcast
