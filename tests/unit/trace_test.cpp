#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "report/trace.hpp"

namespace weightcast {

namespace {

using nlohmann::json;

TEST(Trace, AProcessForEveryRankALaneForEveryStageASliceForEveryBucket) {
  const std::vector<RankTrace> traces{
      {0, "trainer", 7, 0, {{TraceStage::kPack, 0, 0.001, 0.5}, {TraceStage::kTransport, 3, 0.25, 0.125}}},
      {1, "inference", 7, 0, {{TraceStage::kUnpack, 3, 0.5, 0.25}}},
      // The second update begins two seconds later; nobody gets a second name.
      {0, "trainer", 8, 2, {{TraceStage::kVerify, 1, 0.5, 1}}}};
  const json root = json::parse(trace_json(traces));

  std::vector<json> names;
  std::vector<json> slices;
  for (const json& event : root.at("traceEvents")) (event.at("ph") == "M" ? names : slices).push_back(event);
  const auto named = [&](const char* what, int rank, int lane) {
    std::vector<std::string> found;
    for (const json& name : names) {
      if (name.at("name") == what && name.at("pid") == rank && name.at("tid") == lane) {
        found.push_back(name.at("args").at("name"));
      }
    }
    return found;
  };
  EXPECT_EQ(named("process_name", 0, 0), std::vector<std::string>{"rank 0 trainer"});
  EXPECT_EQ(named("process_name", 1, 0), std::vector<std::string>{"rank 1 inference"});
  const std::vector<std::string> lanes{"pack", "transport", "unpack", "verify"};
  for (const int rank : {0, 1}) {
    for (int lane = 0; lane < 4; ++lane) {
      EXPECT_EQ(named("thread_name", rank, lane),
                std::vector<std::string>{lanes.at(static_cast<std::size_t>(lane))});
    }
  }

  const auto expect_slice = [](const json& slice, const json& expected) {
    EXPECT_EQ(slice.at("ph"), "X");
    json seen;
    for (const auto& [key, value] : expected.items()) seen[key] = slice.at(key);
    EXPECT_EQ(seen, expected);
  };
  ASSERT_EQ(slices.size(), 4);
  // Times are in microseconds.
  expect_slice(slices[0], {{"name", "bucket 0"}, {"cat", "pack"}, {"pid", 0}, {"tid", 0}, {"dur", 5e5}});
  EXPECT_DOUBLE_EQ(slices[0].at("ts"), 1000);
  expect_slice(slices[1], {{"name", "bucket 3"}, {"tid", 1}, {"ts", 2.5e5}, {"dur", 1.25e5}});
  expect_slice(slices[2], {{"name", "bucket 3"}, {"cat", "unpack"}, {"pid", 1}, {"tid", 2}, {"ts", 5e5}});
  expect_slice(slices[3], {{"name", "bucket 1"}, {"pid", 0}, {"ts", 2.5e6}, {"args", {{"version", 8}}}});
}

}  // namespace

}  // namespace weightcast
