#pragma once

#include <memory>
#include <vector>

#include "kernels/executor.hpp"
#include "memory/host_buffer.hpp"
#include "model/catalog.hpp"
#include "plan/held_weights.hpp"
#include "plan/plan.hpp"
#include "plan/sending.hpp"
#include "source/source.hpp"

namespace weightcast {

/// A trainer rank's weights in host memory, wherever they lie there.
class HeldSource : public HostSource {
 public:
  /// `buffers[b]` is buffer number b of `held`. All arguments but `held` must outlive the source. Throws as
  /// compile_sending().
  HeldSource(const Plan& plan, const Catalog& catalog, std::int64_t trainer, const HeldWeights& held,
             std::vector<std::byte*> buffers);

  void find_largest(std::int64_t trainer, std::span<float> largest,
                    const std::function<void()>& poll) override;
  std::byte* in_place(std::uint32_t segment) const override;
  void finish_bucket(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) override;

 private:
  const Plan& plan_;
  std::unique_ptr<Executor> executor_;
  std::vector<std::byte*> buffers_;
  std::vector<const std::byte*> read_buffers_;  ///< the same
  Sending sending_;
  std::vector<std::uint64_t> results_;
  std::vector<QuantDigests> quant_results_;
};

/// Such weights in memory of their own, filled with synthetic values.
class MemorySource final : public HeldSource {
 public:
  /// Bytes that a source for this trainer would hold.
  static std::int64_t bytes_needed(const Plan& plan, const Catalog& catalog, std::int64_t trainer);

  /// `plan` and `catalog` must outlive the source.
  MemorySource(const Plan& plan, const Catalog& catalog, std::int64_t trainer, std::int64_t version);

  /// All of it, for measuring what the wire does with the same bytes.
  std::span<std::byte> memory() const { return memory_->span(); }

 private:
  MemorySource(const Plan& plan, const Catalog& catalog, std::int64_t trainer, std::int64_t version,
               const OwnWeights& weights, std::unique_ptr<HostBuffer> memory);

  std::unique_ptr<HostBuffer> memory_;
};

}  // namespace weightcast
