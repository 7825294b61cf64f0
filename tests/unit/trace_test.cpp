#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "report/trace.hpp"

namespace weightcast {

namespace {

using nlohmann::json;

TEST(Trace, AProcessForEveryRankALaneForEveryStageASliceForEveryBucket) {
  const std::vector<RankTrace> traces{
      {0,
       "trainer",
       7,
       0,
       false,
       {{TraceStage::kPack, 0, 0.001, 0.5}, {TraceStage::kTransport, 3, 0.25, 0.125}}},
      {1, "inference", 7, 0, false, {{TraceStage::kUnpack, 3, 0.5, 0.25}}},
      // The second update begins two seconds later; nobody gets a second name.
      {0, "trainer", 8, 2, false, {{TraceStage::kVerify, 1, 0.5, 1}}}};
  const json root = json::parse(trace_json(traces, {{100, "0 → 1"}}));

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
  // A lane for what a rank has done.
  EXPECT_EQ(named("thread_name", 0, 0), std::vector<std::string>{"pack"});
  EXPECT_EQ(named("thread_name", 0, 1000), std::vector<std::string>{"transport"});
  EXPECT_EQ(named("thread_name", 0, 3000), std::vector<std::string>{"verify"});
  EXPECT_EQ(named("thread_name", 1, 2000), std::vector<std::string>{"unpack"});
  EXPECT_EQ(named("thread_name", 0, 2000), std::vector<std::string>{});

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
  expect_slice(slices[1], {{"name", "bucket 3"}, {"tid", 1000}, {"ts", 2.5e5}, {"dur", 1.25e5}});
  expect_slice(slices[2], {{"name", "bucket 3"}, {"cat", "unpack"}, {"pid", 1}, {"tid", 2000}, {"ts", 5e5}});
  expect_slice(slices[3], {{"name", "bucket 1"}, {"pid", 0}, {"ts", 2.5e6}, {"args", {{"version", 8}}}});
  // What is known of the bucket.
  EXPECT_EQ(slices[0].at("args"), json({{"version", 7}, {"bytes", 100}, {"route", "0 → 1"}, {"GB/s", 2e-7}}));
}

TEST(Trace, SlicesOfALaneNeverOverlap) {
  RankTrace trace{3, "inference", 0, 1, true, {}};
  for (int bucket = 0; bucket < 60; ++bucket) {
    trace.slices.push_back({TraceStage::kTransport, bucket, 0.01 * bucket, 0.01 * (1 + 7 * bucket % 5)});
    trace.slices.push_back({TraceStage::kPack, bucket, 0.01 * bucket, 0.01});
  }
  std::map<int, double> ends;
  std::set<std::string> names;
  const json root = json::parse(trace_json({trace}, {}));
  for (const json& event : root.at("traceEvents")) {
    if (event.at("ph") == "M") {
      names.insert(event.at("args").at("name"));
      continue;
    }
    double& end = ends[event.at("tid")];
    EXPECT_GE(event.at("ts").get<double>() + 1e-3, end) << event;
    end = event.at("ts").get<double>() + event.at("dur").get<double>();
  }
  // At most three travel at a time; what is read from files is called so.
  EXPECT_EQ(names,
            (std::set<std::string>{"rank 3 inference", "read", "transport", "transport 2", "transport 3"}));
}

}  // namespace

}  // namespace weightcast
