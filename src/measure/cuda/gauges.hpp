#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "measure/gpu_gauges.hpp"
#include "memory/device_buffer.hpp"
#include "session/cuda/cuda_pipeline.hpp"
#include "source/cuda/resident_source.hpp"
#include "sys/cuda.hpp"

namespace weightcast {

class CudaGauges final : public GpuGauges {
 public:
  CudaGauges(CudaPipeline& pipeline, const RankPlan& rank_plan, Memory& parameters,
             const ResidentSource* source, bool own_wire);

  std::int64_t device_bytes() const override;
  std::int64_t source_bytes() const override;
  std::int64_t wire_room(bool root) const override;
  void open_wire(const std::vector<int>& members) override;
  void broadcast(const std::vector<int>& members, bool root, std::int64_t bytes, std::int64_t step) override;
  void transfer() override { pipeline_.transfer_staging(source_ != nullptr); }
  double pack_seconds(Grid grid) override;
  double unpack_seconds(Grid grid) override;
  double digest_seconds(Grid grid) override;
  double copy_seconds() override;
  std::int64_t copy_bytes() const override;

 private:
  /// Seconds that what `enqueue` puts into the stream takes on the device.
  double timed(const std::function<void()>& enqueue);
  int blocks(Grid grid) const;
  /// Weights and parameters are other processes' then.
  bool own_wire() const { return wire_.bytes() > 0; }

  CudaPipeline& pipeline_;
  const CudaStages& stages_;
  const RankPlan& rank_plan_;
  Memory& parameters_;
  const ResidentSource* source_;
  DeviceBuffer wire_;  ///< empty where broadcasts are from the weights into the parameters
  CudaStream stream_{CudaStream::Priority::kNormal};
};

}  // namespace weightcast
