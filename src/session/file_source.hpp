#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "model/catalog.hpp"
#include "plan/plan.hpp"
#include "session/bound_reader.hpp"
#include "session/source.hpp"
#include "session/team.hpp"

namespace weightcast {

/// A checkpoint on disk: each bucket's boxes are read straight into the staging buffer that is sent, by
/// several threads at once.
class FileSource final : public Source {
 public:
  /// All arguments must outlive the source. `readers` reads for this source alone while it packs.
  FileSource(const Plan& plan, const Catalog& catalog, const Checkpoint& checkpoint, const Binding& binding,
             Team& readers);

  void pack(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) override;
  std::byte* in_place(std::uint32_t /*segment*/) const override { return nullptr; }

 private:
  /// Some rows of a segment.
  struct Task {
    std::uint32_t segment = 0;
    Box box;
    std::int64_t offset = 0;  ///< of the first byte in the bucket
    std::uint64_t digest = 0;
  };

  void cut_into_tasks(const Bucket& bucket);
  void read(Task& task, std::byte* staging, bool digest) const;

  const Plan& plan_;
  const Catalog& catalog_;
  BoundReader reader_;
  Team& readers_;
  std::vector<Task> tasks_;  ///< of the current bucket; keeps its capacity
};

}  // namespace weightcast
