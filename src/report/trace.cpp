#include "report/trace.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "report/json_report.hpp"

namespace weightcast {

namespace {

using nlohmann::ordered_json;

constexpr std::array<const char*, 4> kStages{"pack", "transport", "unpack", "verify"};
constexpr int kMostLanes = 1000;  ///< of a stage; lane 1002 is the third of the stage 1

ordered_json metadata(const char* what, int rank, int lane, const std::string& name) {
  return {{"name", what}, {"ph", "M"}, {"pid", rank}, {"tid", lane}, {"args", {{"name", name}}}};
}

/// The lanes of one stage on one rank: a slice goes into the first one that is free when it begins.
class Lanes {
 public:
  int of(double start, double end) {
    std::size_t lane = 0;
    constexpr double kRounding = 1e-9;  // seconds
    while (lane < ends_.size() && ends_[lane] > start + kRounding) ++lane;
    if (lane == ends_.size()) ends_.push_back(0);
    ends_[lane] = end;
    return static_cast<int>(lane);
  }

  std::size_t count() const { return ends_.size(); }

 private:
  std::vector<double> ends_;
};

std::string name_of(std::size_t stage, bool reads) {
  return stage == 0 && reads ? "read" : kStages.at(stage);
}

}  // namespace

std::string trace_json(const std::vector<RankTrace>& traces, const std::vector<TracedBucket>& buckets) {
  auto events = ordered_json::array();
  std::set<int> named;
  std::map<std::pair<int, std::size_t>, Lanes> lanes;
  for (const RankTrace& trace : traces) {
    if (named.insert(trace.rank).second) {
      events.push_back(
          metadata("process_name", trace.rank, 0, fmt::format("rank {} {}", trace.rank, trace.role)));
    }
    std::vector<TraceSlice> slices = trace.slices;
    std::ranges::stable_sort(slices, {}, &TraceSlice::start);
    for (const TraceSlice& slice : slices) {
      const auto stage = static_cast<std::size_t>(slice.stage);
      const double start = trace.begin + slice.start;
      Lanes& stage_lanes = lanes[{trace.rank, stage}];
      const std::size_t before = stage_lanes.count();
      const int number = stage_lanes.of(start, start + slice.seconds);
      const int lane = static_cast<int>(stage) * kMostLanes + number;
      const std::string name = name_of(stage, trace.reads);
      if (stage_lanes.count() > before) {
        const std::string label = number == 0 ? name : fmt::format("{} {}", name, number + 1);
        events.push_back(metadata("thread_name", trace.rank, lane, label));
      }
      ordered_json arguments = {{"version", trace.version}};
      if (static_cast<std::size_t>(slice.bucket) < buckets.size()) {
        const TracedBucket& bucket = buckets[static_cast<std::size_t>(slice.bucket)];
        arguments["bytes"] = bucket.bytes;
        arguments["route"] = bucket.route;
        arguments["GB/s"] = static_cast<double>(bucket.bytes) / std::max(slice.seconds, 1e-9) / 1e9;
      }
      // The format counts microseconds.
      events.push_back({{"name", fmt::format("bucket {}", slice.bucket)},
                        {"cat", name},
                        {"ph", "X"},
                        {"ts", start * 1e6},
                        {"dur", slice.seconds * 1e6},
                        {"pid", trace.rank},
                        {"tid", lane},
                        {"args", std::move(arguments)}});
    }
  }
  const ordered_json root = {{"displayTimeUnit", "ms"}, {"traceEvents", std::move(events)}};
  return json_report(root, -1);
}

}  // namespace weightcast
