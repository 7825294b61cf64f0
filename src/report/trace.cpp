#include "report/trace.hpp"

#include <fmt/format.h>

#include <array>
#include <nlohmann/json.hpp>
#include <set>

#include "report/json_report.hpp"

namespace weightcast {

namespace {

using nlohmann::ordered_json;

constexpr std::array<const char*, 4> kLanes{"pack", "transport", "unpack", "verify"};

ordered_json metadata(const char* what, int rank, int lane, const std::string& name) {
  return {{"name", what}, {"ph", "M"}, {"pid", rank}, {"tid", lane}, {"args", {{"name", name}}}};
}

}  // namespace

std::string trace_json(const std::vector<RankTrace>& traces) {
  auto events = ordered_json::array();
  std::set<int> named;
  for (const RankTrace& trace : traces) {
    if (named.insert(trace.rank).second) {
      events.push_back(
          metadata("process_name", trace.rank, 0, fmt::format("rank {} {}", trace.rank, trace.role)));
      for (std::size_t lane = 0; lane < kLanes.size(); ++lane) {
        events.push_back(metadata("thread_name", trace.rank, static_cast<int>(lane), kLanes.at(lane)));
      }
    }
    for (const TraceSlice& slice : trace.slices) {
      const auto lane = static_cast<std::size_t>(slice.stage);
      // The format counts microseconds.
      events.push_back({{"name", fmt::format("bucket {}", slice.bucket)},
                        {"cat", kLanes.at(lane)},
                        {"ph", "X"},
                        {"ts", (trace.begin + slice.start) * 1e6},
                        {"dur", slice.seconds * 1e6},
                        {"pid", trace.rank},
                        {"tid", lane},
                        {"args", {{"version", trace.version}}}});
    }
  }
  const ordered_json root = {{"displayTimeUnit", "ms"}, {"traceEvents", std::move(events)}};
  return json_report(root, -1);
}

}  // namespace weightcast
