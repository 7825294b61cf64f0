// The executable over NCCL: real checkpoints through files, GPUs and shard files.

#include <gtest/gtest.h>

#include <algorithm>

#include "cli/cli.hpp"
#include "gpu.hpp"

namespace weightcast::test_support {
namespace {

class GpuSync : public CliTest {
 protected:
  std::string json_ = dir_ / "report.json";
  std::string trace_ = dir_ / "trace.json";

  /// Slices of a lane that took some time.
  std::int64_t slices(int rank, const std::string& lane) const {
    const auto trace = read_json(trace_);
    const auto& events = trace.at("traceEvents");
    return std::count_if(events.begin(), events.end(), [&](const auto& event) {
      return event.at("ph") == "X" && event.at("pid") == rank && event.at("cat") == lane &&
             event.at("dur") > 0.0;
    });
  }

  /// The first rank reads files and sends, the second receives: each has its lanes, of many buckets.
  void expect_trace(std::int64_t least) const {
    EXPECT_GE(slices(0, "read"), least);
    EXPECT_GE(slices(0, "transport"), least);
    EXPECT_EQ(slices(0, "unpack"), 0);
    EXPECT_EQ(slices(1, "read"), 0);
    for (const char* lane : {"transport", "unpack", "verify"}) EXPECT_GE(slices(1, lane), least) << lane;
  }
};

TEST_F(GpuSync, ThreeVersionsOfTheTrainedModel) {
  WEIGHTCAST_NEEDS_GPUS(2);
  const Outcome outcome = run_job(2, {"sync", "--source", trained(0), "--source", trained(1), "--source",
                                      trained(181), "--sink", "hdf5:" + (dir_ / "shards-{version}"),
                                      "--bucket-size", "128KiB", "--json", json_, "--trace", trace_});
  EXPECT_TRUE(done(outcome));
  // `auto` takes NCCL where every rank has a GPU of its own.
  EXPECT_TRUE(has(outcome.out, {"transport nccl", "cuda:0 ", "cuda:1 ", "NCCL"}));
  const auto report = read_json(json_);
  ASSERT_EQ(report.at("updates").size(), 3);
  for (const auto& update : report.at("updates")) EXPECT_TRUE(update.at("verified").get<bool>());
  int version = 0;
  for (const int step : {0, 1, 181}) {
    EXPECT_TRUE(done(
        run_plain({"verify", dir_ / ("shards-" + std::to_string(version++)), "--source", trained(step)})));
  }
  constexpr std::int64_t kUpdates = 3;
  expect_trace(kUpdates * 8);
  for (const auto& update : report.at("updates")) {
    EXPECT_GT(update.at("seconds").at("read"), 0.0);
    EXPECT_GT(update.at("seconds").at("transport"), 0.0);
  }
}

TEST_F(GpuSync, ColocatedRanksFromHdf5) {
  WEIGHTCAST_NEEDS_GPUS(2);
  const std::string source = dir_ / "step181.h5";
  EXPECT_TRUE(done(run_plain({"convert", "--source", trained(181), "--output", source})));
  EXPECT_TRUE(done(run_job(
      2, {"sync", "--source", source, "--model", trained(181), "--colocate", "--inference", "tp=2,ep=2",
          "--moe-layout", "cutlass", "--transport", "nccl", "--sink", "hdf5:" + sink_})));
  EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", trained(181)})));
}

TEST_F(GpuSync, WhatEnginesComputeIsWhatTheHostComputes) {
  WEIGHTCAST_NEEDS_GPUS(2);
  // A of Mamba-2 layers; keys that are in two places of a parameter.
  for (const char* model : {"nemotron-h", "gemma4-moe"}) {
    SCOPED_TRACE(model);
    const TempDir dir;
    const std::string config = std::string(kData) + "/vllm/" + model + "/config.json";
    const std::string source = dir / "source";
    ASSERT_TRUE(done(run_plain({"synth", "--model", config, "--output", source})));
    const auto sync = [&](int ranks, const std::string& sink, const Words& how) {
      EXPECT_TRUE(done(run_job(
          ranks,
          Words{"sync", "--source", source, "--engine", "vllm", "--sink", "safetensors:" + sink} + how)));
      EXPECT_TRUE(done(run_plain({"verify", sink, "--source", source})));
    };
    sync(2, dir / "host", {"--inference", "tp=1", "--transport", "mpi"});
    sync(2, dir / "gpus", {"--inference", "tp=1", "--transport", "nccl"});
    EXPECT_TRUE(shard_contents(dir / "gpus") == shard_contents(dir / "host"));
    sync(3, dir / "host-2", {"--inference", "tp=2", "--transport", "mpi"});
    sync(2, dir / "colocated", {"--inference", "tp=2", "--colocate", "--transport", "nccl"});
    EXPECT_TRUE(shard_contents(dir / "colocated") == shard_contents(dir / "host-2"));
    // Weights of trainers that are on GPUs, too, verified there.
    for (const Words& how : {Words{"--inference", "tp=1"}, Words{"--inference", "tp=2", "--colocate"}}) {
      EXPECT_TRUE(done(
          run_job(2, Words{"bench", "--model", config, "--transport", "nccl", "--iterations", "2"} + how)));
    }
  }
}

TEST_F(GpuSync, BenchMeasuresTheParts) {
  WEIGHTCAST_NEEDS_GPUS(2);
  const Outcome outcome =
      run_job(2, {"bench", "--model", model_folder("tiny-qwen3-moe"), "--transport", "nccl", "--iterations",
                  "2", "--bucket-size", "64KiB", "--json", json_, "--trace", trace_});
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(
      has(outcome.out, {"NCCL broadcast of 64.0 KiB", "the plan's transfers alone", "device copy",
                        "pack alone", "unpack alone", "update, verified", "memory beyond parameters"}));
  for (const auto& measured : read_json(json_).at("measured")) {
    EXPECT_GT(measured.at("gb_s"), 0.0) << measured.dump();
  }
  expect_trace(8);
}

TEST_F(GpuSync, DirectWaysAreSaidOrRefused) {
  WEIGHTCAST_NEEDS_GPUS(2);
  const std::string model = std::string(kData) + "/models/tiny-qwen3-moe";
  const auto bench = [&](const char* direct) {
    return Words{"bench", "--model", model, "--transport", "nccl", "--bucket-size", "64KiB", "--iterations",
                 "1",     "--json",  json_, "--trace",     trace_, "--direct",      direct};
  };
  const Outcome outcome = run_job(2, bench("auto"));
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {"# ways    1 route directly", "update, verified"}));
  EXPECT_EQ(read_json(json_).at("ways").at("direct_routes"), 1);
  EXPECT_GE(slices(0, "transport"), 8);
  EXPECT_EQ(slices(1, "unpack"), 0);
  EXPECT_GE(slices(1, "verify"), 8);
  // A trainer that does not see the engine's GPU.
  const auto seeing_one = [&](const char* direct) {
    Words words{"bash", "-c"};
    words.emplace_back("export CUDA_VISIBLE_DEVICES=$OMPI_COMM_WORLD_LOCAL_RANK; exec \"$0\" \"$@\"");
    words.emplace_back(WEIGHTCAST_BINARY);
    return run(mpirun(2, words + bench(direct)));
  };
  EXPECT_TRUE(refused(seeing_one("always"), 64,
                      {"--direct always: rank 0", "the parameters of rank 1", "does not see GPU",
                       "CUDA_VISIBLE_DEVICES", "--direct auto"}));
  const Outcome over_nccl = seeing_one("auto");
  EXPECT_TRUE(done(over_nccl));
  EXPECT_TRUE(has(over_nccl.out, {"# ways    0 routes directly", "1 over NCCL", "# ways    rank 0 ("}));
  const auto obstacles = read_json(json_).at("ways").at("obstacles");
  ASSERT_EQ(obstacles.size(), 1);
  EXPECT_TRUE(has(obstacles[0], {"the parameters of rank 1: it does not see GPU"}));
  EXPECT_TRUE(
      refused(run_job(2, {"sync", "--source", trained(0), "--transport", "nccl", "--direct", "always"}), 64,
              {"--direct always", "files"}));
}

TEST_F(GpuSync, TwoRanksOnOneGpuAreRefused) {
  WEIGHTCAST_NEEDS_GPUS(1);
  const Words words{"sync", "--source", trained(0), "--transport", "nccl"};
  EXPECT_TRUE(refused(run_job(2, words, {{"CUDA_VISIBLE_DEVICES", "0"}}), 64,
                      {"--transport nccl", "share GPU", "--transport mpi"}));
}

TEST_F(GpuSync, TwoRanksOnOneGpuTakeMpiByThemselves) {
  WEIGHTCAST_NEEDS_GPUS(1);
  const Outcome outcome = run_job(2, {"sync", "--source", trained(0), "--sink", "hdf5:" + sink_},
                                  {{"CUDA_VISIBLE_DEVICES", "0"}});
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {"transport mpi"}));
}

TEST_F(GpuSync, WithoutAGpuNcclIsRefused) {
  const Words words{"sync", "--source", trained(0), "--transport", "nccl"};
  EXPECT_TRUE(refused(run_job(2, words, {{"CUDA_VISIBLE_DEVICES", ""}}), 64,
                      {"--transport nccl", "sees no GPU", "--transport mpi"}));
}

}  // namespace
}  // namespace weightcast::test_support
