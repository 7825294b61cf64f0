#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "kernels/cuda/cuda_programs.hpp"
#include "memory/device_buffer.hpp"
#include "model/catalog.hpp"
#include "plan/plan.hpp"
#include "session/held_weights.hpp"
#include "session/source.hpp"

namespace weightcast {

/// A trainer rank's weights in the memory of its GPU, filled with synthetic values.
class ResidentSource final : public Source {
 public:
  /// `plan` and `catalog` must outlive the source. Waits until the values are there.
  ResidentSource(const Plan& plan, const Catalog& catalog, std::int64_t trainer, std::int64_t version);

  const ResidentSource* resident() const override { return this; }
  void find_largest(std::int64_t trainer, std::span<float> largest) override;
  /// Throw InternalError: nothing of this source is in host memory.
  void pack(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) override;
  std::byte* in_place(std::uint32_t segment) const override;

  /// Programs by plan bucket: device memory to staging, and the digests of what is sent.
  const CudaMovePrograms& moves() const { return moves_; }
  const CudaDigestPrograms& digests() const { return digests_; }
  /// Where segment number `segment` of the plan lies: offset from data() and pitch, as its pack move says.
  const Move& place(std::uint32_t segment) const { return places_.at(segment); }
  /// The segment of digest result number i.
  const std::vector<std::uint32_t>& segments() const { return segments_; }

  /// All of it, for measuring what the wire does with the same bytes.
  std::byte* data() const { return memory_.data(); }
  std::int64_t bytes() const { return memory_.bytes(); }

 private:
  DeviceBuffer memory_;
  CudaMovePrograms moves_;
  CudaDigestPrograms digests_;
  std::vector<std::uint32_t> segments_;
  std::unordered_map<std::uint32_t, Move> places_;  ///< by segment
};

}  // namespace weightcast
