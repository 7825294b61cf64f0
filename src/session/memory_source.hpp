#pragma once

#include <memory>
#include <vector>

#include "kernels/executor.hpp"
#include "memory/host_buffer.hpp"
#include "model/catalog.hpp"
#include "plan/plan.hpp"
#include "session/source.hpp"

namespace weightcast {

/// A trainer rank's parameters in host memory, filled with synthetic values: of every tensor that the rank
/// sends any of, the rows that it sends, as a training framework would hold them.
class MemorySource final : public Source {
 public:
  /// Bytes that a source for this trainer would hold.
  static std::int64_t bytes_needed(const Plan& plan, const Catalog& catalog, std::int64_t trainer);

  /// `plan` and `catalog` must outlive the source.
  MemorySource(const Plan& plan, const Catalog& catalog, std::int64_t trainer, std::int64_t version);

  void pack(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) override;
  std::byte* in_place(std::uint32_t segment) const override;

  /// All of it, for measuring what the wire does with the same bytes.
  std::span<std::byte> memory() const { return memory_.span(); }

 private:
  static constexpr std::int64_t kStaged = -1;

  struct Program {
    std::vector<Move> moves;
    std::vector<DigestBox> boxes;
  };

  std::unique_ptr<Executor> executor_;
  HostBuffer memory_;
  std::vector<Program> programs_;       ///< by bucket; empty for the buckets of other trainers
  std::vector<std::int64_t> in_place_;  ///< by segment: bytes from the start of the memory, or kStaged
  std::vector<std::uint64_t> results_;
};

}  // namespace weightcast
