#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "memory/device_buffer.hpp"
#include "plan/plan.hpp"
#include "plan/rank_plan.hpp"
#include "plan/sending.hpp"
#include "sys/cuda.hpp"

namespace weightcast {

/// The digests of an update: words in device memory to which kernels add, and the pinned copy that the host
/// reads after the update.
class DigestResults {
 public:
  DigestResults(const Plan& plan, const RankPlan& rank_plan);

  // On the device.
  /// One for each of ResidentSource::sent_digests().
  std::uint64_t* sent() const { return reinterpret_cast<std::uint64_t*>(sent_.data()); }
  /// One for each of RankPlan::checks.
  std::uint64_t* written() const { return reinterpret_cast<std::uint64_t*>(written_.data()); }
  /// For CudaMovePrograms::find_not_zero on the padding.
  unsigned* dirty_padding() const { return reinterpret_cast<unsigned*>(written() + checks_); }

  void enqueue_clear(cudaStream_t stream);
  /// Resets the number of the dirty padding to -1: none.
  void enqueue_clean(cudaStream_t stream);
  /// To the host, where everything below reads.
  void enqueue_copy(cudaStream_t stream);

  /// Writes to `sent`, which is numbered as Plan::digests, where `numbers` says; the digests of the parts of
  /// a segment add up to that of the whole.
  void read_sent(const std::vector<SentDigest>& numbers, std::span<std::uint64_t> sent) const;
  /// Writes one for each of RankPlan::checks.
  void read_written(std::span<std::uint64_t> written) const;
  /// The first move of RankPlan::padding whose region is not zero, or -1.
  std::int64_t first_dirty_padding() const;

 private:
  const std::byte* host_written() const { return host_.data() + sent_.bytes(); }

  std::size_t checks_;
  DeviceBuffer sent_;
  DeviceBuffer written_;  ///< and behind it the dirty padding
  PinnedBuffer host_;     ///< of both
};

}  // namespace weightcast
