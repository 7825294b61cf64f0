#pragma once

#include <span>

#include "report/trace.hpp"

namespace weightcast {

/// Seconds that each stage of one rank was busy during an update.
struct StageSeconds {
  double pack = 0;       ///< reading or packing, digests of what is sent included
  double transport = 0;  ///< of roots alone: buckets on their way, less the waits for other stages
  double unpack = 0;
  double verify = 0;  ///< digests of what was written
};

/// Sums the slices of an update by stage. Seconds in which several buckets travel count once, for which
/// `slices` must have those of the transport in the order in which they began.
StageSeconds sum_by_stage(std::span<const TraceSlice> slices);

}  // namespace weightcast
