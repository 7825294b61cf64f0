#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/parameters.hpp"

namespace weightcast::engine {

/// Whether shards of that MoE layout can be read.
bool is_known_layout(const std::string& moe_layout);

/// A rank's part of an expert's inner size is padded to a multiple of this.
std::int64_t inner_unit(const std::string& moe_layout);

/// Parameters whose experts' matrices lie as a kernel wants them, read through the inverse of that layout:
/// w13 comes as [El, 2·I, H] with gate first (of `cutlass` as it is stored), w2 as [El, H, I].
class LaidOutSource : public ParameterSource {
 public:
  /// `source` must outlive it.
  LaidOutSource(const ParameterSource& source, std::string moe_layout);

  std::vector<std::string> names() const override { return source_.names(); }
  Tensor read(const std::string& name) const override;

 private:
  const ParameterSource& source_;
  std::string moe_layout_;
};

}  // namespace weightcast::engine
