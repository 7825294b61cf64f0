#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "kernels/cuda/cuda_digests.hpp"
#include "kernels/cuda/cuda_moves.hpp"
#include "kernels/cuda/cuda_quantizer.hpp"
#include "memory/device_buffer.hpp"
#include "model/catalog.hpp"
#include "plan/plan.hpp"
#include "plan/sending.hpp"
#include "source/source.hpp"

namespace weightcast {

/// A trainer rank's weights in the memory of its GPU, wherever they lie there.
class ResidentSource : public Source {
 public:
  /// `buffers[b]` is the device memory of buffer number b of `held`. `plan` and `catalog` must outlive the
  /// source, and so must the memory. Throws as compile_sending().
  ResidentSource(const Plan& plan, const Catalog& catalog, std::int64_t trainer, const HeldWeights& held,
                 std::vector<std::span<std::byte>> buffers);

  const ResidentSource* resident() const final { return this; }
  /// No other source of this process has or will have it, unlike the address; never 0.
  std::uint64_t number() const { return number_; }
  void find_largest(std::int64_t trainer, std::span<float> largest,
                    const std::function<void()>& poll) override;

  /// Puts plan bucket `bucket` into `staging`; `scales` are those of the plan's scopes, in device memory.
  /// What is quantised has its digests made on the way, which are added to `results`, unless that is null.
  void enqueue_pack(std::uint32_t bucket, std::byte* staging, const GlobalScale* scales,
                    std::uint64_t* results, int blocks, cudaStream_t stream) const;
  /// Adds the other digests of what is sent in a bucket to `results`, one for each of sent_digests(); all
  /// where the bucket is not `packed`.
  void enqueue_digests(std::uint32_t bucket, const GlobalScale* scales, std::uint64_t* results, bool packed,
                       int blocks, cudaStream_t stream) const;
  /// Where segment number `segment` of the plan lies, if its values travel: its pack move, with the offset
  /// from the first buffer on. Throws UsageError naming the tensor when it lies in several pieces.
  Move place(std::uint32_t segment) const;
  /// What digest result number i is the digest of.
  const std::vector<SentDigest>& sent_digests() const { return sent_digests_; }

  std::span<const std::span<std::byte>> buffers() const { return buffers_; }

 private:
  static std::uint64_t next_number();

  const Plan& plan_;
  const Catalog& catalog_;
  std::uint64_t number_ = next_number();
  std::vector<std::span<std::byte>> buffers_;
  CudaMovePrograms moves_;
  CudaDigestPrograms digests_;
  CudaQuantPrograms quants_;  ///< of all that anybody quantises; what is not quantised here for digests alone
  bool packs_codes_ = false;  ///< something is quantised here
  std::size_t boxes_ = 0;     ///< digest results before those of quantised tensors
  std::vector<SentDigest> sent_digests_;
  std::unordered_map<std::uint32_t, std::vector<Move>> places_;  ///< by segment: a move for each piece
};

/// Such weights in memory of their own, filled with synthetic values.
class SyntheticSource final : public ResidentSource {
 public:
  /// `plan` and `catalog` must outlive the source. Waits until the values are there.
  SyntheticSource(const Plan& plan, const Catalog& catalog, std::int64_t trainer, std::int64_t version);

 private:
  SyntheticSource(const Plan& plan, const Catalog& catalog, std::int64_t trainer, std::int64_t version,
                  const OwnWeights& weights, DeviceBuffer memory);

  DeviceBuffer memory_;
};

}  // namespace weightcast
