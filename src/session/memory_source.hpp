#pragma once

#include <memory>
#include <vector>

#include "kernels/executor.hpp"
#include "memory/host_buffer.hpp"
#include "model/catalog.hpp"
#include "plan/plan.hpp"
#include "session/held_weights.hpp"
#include "session/source.hpp"

namespace weightcast {

/// A trainer rank's weights in host memory, filled with synthetic values.
class MemorySource final : public Source {
 public:
  /// Bytes that a source for this trainer would hold.
  static std::int64_t bytes_needed(const Plan& plan, const Catalog& catalog, std::int64_t trainer);

  /// `plan` and `catalog` must outlive the source.
  MemorySource(const Plan& plan, const Catalog& catalog, std::int64_t trainer, std::int64_t version);

  void find_largest(std::int64_t trainer, std::span<float> largest,
                    const std::function<void()>& poll) override;
  void pack(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) override;
  std::byte* in_place(std::uint32_t segment) const override;

  /// All of it, for measuring what the wire does with the same bytes.
  std::span<std::byte> memory() const { return memory_.span(); }

 private:
  static constexpr std::int64_t kStaged = -1;

  const Plan& plan_;
  std::unique_ptr<Executor> executor_;
  HostBuffer memory_;
  HeldPrograms programs_;
  std::vector<std::vector<Move>> staged_;  ///< by bucket: the moves of what is not sent from its own place
  std::vector<std::int64_t> in_place_;     ///< by segment: bytes from the start of the memory, or kStaged
  std::vector<std::uint64_t> results_;
  std::vector<QuantDigests> quant_results_;
};

}  // namespace weightcast
