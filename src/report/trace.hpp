#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace weightcast {

/// The stages of an update that a trace has lanes for.
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
  double begin = 0;    ///< seconds from the first traced update to this one
  bool reads = false;  ///< what it packs it reads from files
  std::vector<TraceSlice> slices;
};

/// What a slice says of its bucket beside its number.
struct TracedBucket {
  std::int64_t bytes = 0;
  std::string route;  ///< `0 → 2,3`
};

/// The traces in Chrome's JSON trace format, which Perfetto reads: a process for every rank, a lane for every
/// stage, a slice for every bucket. Several buckets may be in a stage at a time, and Perfetto drops slices of
/// a lane that overlap: such a stage has as many lanes as buckets at a time. `buckets` is in the plan's
/// global order.
std::string trace_json(const std::vector<RankTrace>& traces, const std::vector<TracedBucket>& buckets);

}  // namespace weightcast
