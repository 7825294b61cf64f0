#include "session/stage_seconds.hpp"

#include <algorithm>

namespace weightcast {

StageSeconds sum_by_stage(std::span<const TraceSlice> slices) {
  StageSeconds seconds;
  double transported = 0;  // everything before this has been counted
  for (const TraceSlice& slice : slices) {
    const double end = slice.start + slice.seconds;
    switch (slice.stage) {
      case TraceStage::kPack:
        seconds.pack += slice.seconds;
        break;
      case TraceStage::kTransport:
        seconds.transport += std::max(0.0, end - std::max(slice.start, transported));
        transported = std::max(transported, end);
        break;
      case TraceStage::kUnpack:
        seconds.unpack += slice.seconds;
        break;
      case TraceStage::kVerify:
        seconds.verify += slice.seconds;
        break;
    }
  }
  return seconds;
}

}  // namespace weightcast
