#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "core/quantizer.hpp"
#include "measure/row_index.hpp"
#include "plan/rank_plan.hpp"

namespace weightcast {

/// The memory that an unpack is measured in: all of it on the host, or all on the current device.
struct UnpackBuffers {
  std::span<std::byte> staging;        ///< the bucket, at a multiple of 16 bytes
  std::vector<std::byte*> parameters;  ///< by number
  std::byte* copied = nullptr;         ///< as much as staging, for a plain copy of it
};

/// The unpack of one bucket alone, again and again, beside other ways to move the same bytes.
class Unpacking {
 public:
  virtual ~Unpacking() = default;

  /// Writes the zeros that no tensor feeds. Waits.
  virtual void zero_padding() = 0;

  /// Seconds that it takes to bring the values from staging into the parameters: moved, permuted, quantised.
  virtual double unpack_seconds() = 0;
  /// Seconds that the way of row_index.hpp takes, from building every table on.
  virtual double index_seconds() = 0;
  /// Seconds of a plain copy of all of staging.
  virtual double copy_seconds() = 0;
};

/// On one thread of the host. `rank_plan` has one bucket and must outlive it; `scales` are those of the
/// plan's scopes; `matrices` may be empty, index_seconds() is then 0.
std::unique_ptr<Unpacking> make_host_unpacking(const RankPlan& rank_plan, UnpackBuffers buffers,
                                               const std::vector<GlobalScale>& scales,
                                               std::vector<IndexedMatrix> matrices);

}  // namespace weightcast
