#pragma once

#include "model/catalog.hpp"
#include "plan/plan.hpp"
#include "session/bound_reader.hpp"
#include "session/source.hpp"

namespace weightcast {

/// A checkpoint on disk: each bucket's boxes are read straight into the staging buffer that is sent.
class FileSource final : public Source {
 public:
  /// All arguments must outlive the source.
  FileSource(const Plan& plan, const Catalog& catalog, const Checkpoint& checkpoint, const Binding& binding);

  void pack(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) override;
  std::byte* in_place(std::uint32_t /*segment*/) const override { return nullptr; }

 private:
  const Plan& plan_;
  const Catalog& catalog_;
  BoundReader reader_;
};

}  // namespace weightcast
