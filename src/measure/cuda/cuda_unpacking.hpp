#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda/cuda_moves.hpp"
#include "kernels/cuda/cuda_quantizer.hpp"
#include "kernels/cuda/device_array.hpp"
#include "measure/unpacking.hpp"
#include "memory/device_buffer.hpp"
#include "sys/cuda.hpp"

namespace weightcast {

class CudaUnpacking final : public Unpacking {
 public:
  CudaUnpacking(const RankPlan& rank_plan, UnpackBuffers buffers, const std::vector<GlobalScale>& scales,
                std::vector<IndexedMatrix> matrices);

  void zero_padding() override;
  double unpack_seconds() override;
  double index_seconds() override;
  double copy_seconds() override;

 private:
  void enqueue_copy(const IndexedMatrix& matrix) const;
  /// Through its table, which lies behind `first` others.
  void enqueue_shuffle(const IndexedMatrix& matrix, std::int64_t first) const;

  UnpackBuffers buffers_;
  std::vector<IndexedMatrix> matrices_;
  int blocks_;
  CudaStream stream_;
  CudaMovePrograms moves_;  ///< the bucket's, then the padding
  CudaQuantPrograms quants_;
  DeviceArray<GlobalScale> scales_;
  // Tables have places of their own, so that the host need not wait before it builds the next.
  PinnedBuffer built_;
  DeviceBuffer index_;
  DeviceBuffer gathered_;  ///< of one matrix
};

}  // namespace weightcast
