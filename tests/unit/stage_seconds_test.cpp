#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <set>
#include <vector>

#include "session/stage_seconds.hpp"

namespace weightcast {

namespace {

TEST(StageSeconds, AreSumsButForWhatTravelsAtOnce) {
  const std::vector<TraceSlice> slices{{TraceStage::kPack, 0, 0, 1},      {TraceStage::kPack, 1, 0.5, 2},
                                       {TraceStage::kTransport, 0, 1, 2}, {TraceStage::kTransport, 1, 2, 2},
                                       {TraceStage::kUnpack, 0, 3, 4},    {TraceStage::kTransport, 2, 2.5, 1},
                                       {TraceStage::kUnpack, 1, 3, 0.5},  {TraceStage::kTransport, 3, 9, 1},
                                       {TraceStage::kVerify, 1, 9, 0.25}};
  const StageSeconds seconds = sum_by_stage(slices);
  EXPECT_EQ(seconds.pack, 3);
  EXPECT_EQ(seconds.transport, 4);
  EXPECT_EQ(seconds.unpack, 4.5);
  EXPECT_EQ(seconds.verify, 0.25);
}

TEST(StageSeconds, TransportIsTheTimeInWhichAnythingTravels) {
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    std::vector<TraceSlice> slices;
    std::set<std::uint64_t> busy;
    std::uint64_t start = 0;
    for (auto bucket = random() % 20; bucket > 0; --bucket) {
      start += random() % 5;
      const std::uint64_t length = random() % 8;
      for (std::uint64_t at = start; at < start + length; ++at) busy.insert(at);
      slices.push_back({TraceStage::kTransport, 0, static_cast<double>(start), static_cast<double>(length)});
    }
    EXPECT_EQ(sum_by_stage(slices).transport, static_cast<double>(busy.size()));
  }
}

}  // namespace

}  // namespace weightcast
