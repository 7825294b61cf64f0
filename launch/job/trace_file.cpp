#include "launch/job/trace_file.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "launch/job/run_job.hpp"

namespace weightcast {

namespace {

std::vector<TracedBucket> traced(const Plan& plan) {
  std::vector<TracedBucket> buckets;
  for (const Bucket& bucket : plan.buckets) {
    buckets.push_back(
        {bucket.bytes, fmt::format("trainer {} → inference {}{}", bucket.root,
                                   fmt::join(plan.destinations[bucket.destinations], ","),
                                   plan.topology.engine.replicas > 1 ? " of each replica" : "")});
  }
  return buckets;
}

}  // namespace

TraceFile::TraceFile(Control& control, const Session& session, OutputFile* file)
    : control_(control), session_(session), file_(file) {
  session.pipeline().trace();
}

void TraceFile::add(std::int64_t version, bool from_files) {
  static_assert(std::is_trivially_copyable_v<TraceSlice>);
  const std::vector<TraceSlice> mine = session_.pipeline().slices();
  const std::vector<std::string> all = control_.agreement.gather(
      {reinterpret_cast<const char*>(mine.data()), mine.size() * sizeof(TraceSlice)});
  // All ranks begin an update together, so that one clock places it; within it each rank has its own.
  double end = 0;
  std::vector<RankTrace> traces;
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    RankTrace trace;
    trace.rank = static_cast<int>(rank);
    trace.version = version;
    trace.reads = from_files;
    trace.slices.resize(all[rank].size() / sizeof(TraceSlice));
    std::memcpy(trace.slices.data(), all[rank].data(), all[rank].size());
    for (const TraceSlice& slice : trace.slices) end = std::max(end, slice.start + slice.seconds);
    traces.push_back(std::move(trace));
  }
  const double now = std::chrono::duration<double>(Clock::now() - start_).count();
  for (RankTrace& trace : traces) {
    trace.begin = std::max(0.0, now - end);
    traces_.push_back(std::move(trace));
  }
}

void TraceFile::write(const JobReport& report) {
  control_.agreement.together([&] {
    if (file_ == nullptr) return;
    for (RankTrace& trace : traces_) trace.role = report.ranks[static_cast<std::size_t>(trace.rank)].role;
    report_in_place(control_, [&] { file_->write(trace_json(traces_, traced(session_.plan()))); });
  });
}

}  // namespace weightcast
