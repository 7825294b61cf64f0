#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace weightcast {

/// The stages of an update that a trace has a lane for.
enum class TraceStage : std::uint8_t { kPack, kTransport, kUnpack, kVerify };

/// One bucket in one stage on one rank.
struct TraceSlice {
  TraceStage stage = TraceStage::kPack;
  std::int64_t bucket = 0;  ///< in the plan's global order
  double start = 0;         ///< seconds since the update began
  double seconds = 0;
};

/// What one rank did in one update.
struct RankTrace {
  int rank = 0;
  std::string role;
  std::int64_t version = 0;
  double begin = 0;  ///< seconds from the first traced update to this one
  std::vector<TraceSlice> slices;
};

/// The traces in Chrome's JSON trace format, which Perfetto reads: a process for every rank, a lane for every
/// stage, a slice for every bucket.
std::string trace_json(const std::vector<RankTrace>& traces);

}  // namespace weightcast
