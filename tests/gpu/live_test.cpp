// Weights from one process's GPU memory into another's: trainers and engines are processes of their own, and
// so is every job.

#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cli/cli.hpp"
#include "gpu.hpp"

namespace weightcast::test_support {
namespace {

using namespace std::chrono_literals;

class GpuLive : public CliTest {
 protected:
  std::string folder_ = dir_ / "weights";

  /// A process that publishes, with the manifest that it then has written. Version v is checkpoint v modulo
  /// how many there are.
  std::unique_ptr<Process> start(const std::string& role, int rank, int ranks, int device,
                                 const Words& checkpoints, const Words& more = {}) const {
    Words words{WEIGHTCAST_GPU_EXPORTER,
                "--folder",
                folder_,
                "--role",
                role,
                "--rank",
                std::to_string(rank),
                "--ranks",
                std::to_string(ranks),
                "--device",
                std::to_string(device)};
    for (const std::string& checkpoint : checkpoints) words = words + Words{"--checkpoint", checkpoint};
    return started({words + more, {}, 250s}, role, rank);
  }

  std::unique_ptr<Process> started(const CommandLine& command, const std::string& role, int rank) const {
    auto process = std::make_unique<Process>(command);
    while (!std::filesystem::exists(manifest(role, rank))) {
      if (!process->running()) throw std::runtime_error(describe(process->wait()));
      std::this_thread::sleep_for(10ms);
    }
    return process;
  }

  std::string manifest(const std::string& role, int rank) const {
    return folder_ + "/" + role + "-" + std::to_string(rank) + ".json";
  }

  /// The shards that an engine of that layout has of both versions, for each of its ranks.
  std::vector<Words> references(const std::string& layout, int ranks) const {
    std::vector<Words> of_ranks(static_cast<std::size_t>(ranks));
    for (const int step : {0, 181}) {
      const std::string shards = dir_ / ("reference-" + std::to_string(step));
      EXPECT_TRUE(done(run_job(1 + ranks, {"sync", "--source", trained(step), "--inference", layout,
                                           "--transport", "mpi", "--sink", "hdf5:" + shards})));
      for (int rank = 0; rank < ranks; ++rank) {
        of_ranks[static_cast<std::size_t>(rank)].push_back(shards + "/rank-" + std::to_string(rank) + ".h5");
      }
    }
    return of_ranks;
  }

  Words live_words(const std::string& layout) const {
    return {"sync",    "--source", "live:" + folder_, "--sink", "live:" + folder_,
            "--model", trained(0), "--bucket-size",   "128KiB", "--inference",
            layout};
  }
};

const Words& both_steps() {
  static const Words steps{trained(0), trained(181)};
  return steps;
}

TEST_F(GpuLive, FromOneGpuToAnother) {
  WEIGHTCAST_NEEDS_GPUS(2);
  const auto engine = start("engine", 0, 1, 1, references("tp=1", 1)[0]);
  const auto trainer = start("trainer", 0, 1, 0, both_steps(), {"--versions", "6"});
  for (int version = 1; version <= 6; ++version) {
    SCOPED_TRACE(version);
    const Outcome outcome = run_job(2, live_words("tp=1"));
    EXPECT_TRUE(done(outcome));
    EXPECT_TRUE(has(outcome.out, {"transport nccl"}));
    ASSERT_TRUE(engine->wait_for_output("version " + std::to_string(version) + " is there"));
  }
  const Outcome offered = trainer->wait();
  EXPECT_TRUE(has(offered.out, {"offered 6 0"}));
  // What it serves on its GPU, seen by those who only look.
  const Words verify{"verify", "live:" + folder_, "--inference", "tp=1", "--source"};
  EXPECT_TRUE(done(run_plain(verify + Words{trained(0)})));
  EXPECT_TRUE(refused(run_plain(verify + Words{trained(181)}), 66, {"engine-0.json", "differs from"}));
  EXPECT_TRUE(refused(run_plain(verify + Words{trained(0)}, {{"CUDA_VISIBLE_DEVICES", "0"}}), 74,
                      {"engine-0.json", "GPU-", "does not see"}));
  EXPECT_TRUE(has(run_plain({"inspect", "live:" + folder_}).out, {"GPU-", "engine 0: serves version 6\n"}));
  EXPECT_TRUE(has(run_plain({"hosts", folder_}).out, {"engine 0", "GPU-"}));
}

TEST_F(GpuLive, RanksThatAreTrainerAndEngineOnTheirGpu) {
  WEIGHTCAST_NEEDS_GPUS(2);
  const auto shards = references("tp=2,ep=2", 2);
  std::vector<std::unique_ptr<Process>> processes;
  // Ranks find their GPUs by what is published, not by their numbers.
  for (int rank = 0; rank < 2; ++rank) {
    processes.push_back(start("trainer", rank, 2, 1 - rank, both_steps(), {"--versions", "3"}));
    processes.push_back(start("engine", rank, 2, 1 - rank, shards[static_cast<std::size_t>(rank)]));
  }
  for (int version = 1; version <= 3; ++version) {
    SCOPED_TRACE(version);
    const Outcome outcome = run_job(2, live_words("tp=2,ep=2") + Words{"--colocate"});
    EXPECT_TRUE(done(outcome));
    for (const int rank : {0, 1}) {
      ASSERT_TRUE(processes[static_cast<std::size_t>(2 * rank + 1)]->wait_for_output(
          "version " + std::to_string(version) + " is there"));
    }
  }
}

TEST_F(GpuLive, WrittenDirectlyByTheTrainersRank) {
  WEIGHTCAST_NEEDS_GPUS(2);
  const auto engine = start("engine", 0, 1, 1, references("tp=1", 1)[0]);
  const auto trainer = start("trainer", 0, 1, 0, both_steps(), {"--versions", "100"});
  const std::string json = dir_ / "report.json";
  const Words words = live_words("tp=1") + Words{"--direct", "always"};
  for (int version = 1; version <= 4; ++version) {
    SCOPED_TRACE(version);
    const Outcome outcome = run_job(2, words + Words{"--json", json});
    EXPECT_TRUE(done(outcome));
    EXPECT_TRUE(has(outcome.out, {"# ways    1 route directly", "0 over NCCL"}));
    ASSERT_TRUE(engine->wait_for_output("version " + std::to_string(version) + " is there"));
    const auto ways = read_json(json).at("ways");
    EXPECT_EQ(ways.at("direct_routes"), 1);
    EXPECT_EQ(ways.at("nccl_bytes"), 0);
    EXPECT_TRUE(ways.at("obstacles").empty());
  }
  // Killed with all its ranks at some moment; what was mapped is mapped anew.
  for (const auto delay : {1500ms, 2500ms, 3000ms}) {
    SCOPED_TRACE(delay.count());
    {
      const Process job(job_command(2, words));
      std::this_thread::sleep_for(delay);
    }
    EXPECT_TRUE(done(run_job(2, words)));
  }
  engine->send(SIGKILL);
  const Outcome outcome = engine->wait();
  EXPECT_EQ(outcome.out.find("differs"), std::string::npos) << outcome.out;
}

TEST_F(GpuLive, RanksThatAreBothWriteEachOthersEngines) {
  WEIGHTCAST_NEEDS_GPUS(2);
  const auto shards = references("tp=2,ep=2", 2);
  std::vector<std::unique_ptr<Process>> processes;
  for (int rank = 0; rank < 2; ++rank) {
    processes.push_back(start("trainer", rank, 2, 1 - rank, both_steps(), {"--versions", "3"}));
    processes.push_back(start("engine", rank, 2, 1 - rank, shards[static_cast<std::size_t>(rank)]));
  }
  for (int version = 1; version <= 3; ++version) {
    SCOPED_TRACE(version);
    const Outcome outcome = run_job(
        2, live_words("tp=2,ep=2") + Words{"--colocate", "--direct", version == 2 ? "auto" : "always"});
    EXPECT_TRUE(done(outcome));
    EXPECT_TRUE(has(outcome.out, {"directly", "0 over NCCL"}));
    for (const int rank : {0, 1}) {
      ASSERT_TRUE(processes[static_cast<std::size_t>(2 * rank + 1)]->wait_for_output(
          "version " + std::to_string(version) + " is there"));
    }
  }
}

TEST_F(GpuLive, FromTheHostToAGpuAlone) {
  WEIGHTCAST_NEEDS_GPUS(2);
  const auto engine = start("engine", 0, 1, 1, references("tp=1", 1)[0]);
  CommandLine command{{WEIGHTCAST_LIVE_TRAINER, "--folder", folder_, "--checkpoint", trained(0),
                       "--checkpoint", trained(181), "--versions", "2"},
                      {},
                      250s};
  const auto trainer = started(command, "trainer", 0);
  for (int version = 1; version <= 2; ++version) {
    // The trainer's rank takes the GPU that is nobody's.
    EXPECT_TRUE(done(run_job(2, live_words("tp=1"))));
    ASSERT_TRUE(engine->wait_for_output("version " + std::to_string(version) + " is there"));
  }
}

TEST_F(GpuLive, BenchComparesWithTheWire) {
  WEIGHTCAST_NEEDS_GPUS(2);
  const auto engine = start("engine", 0, 1, 1, references("tp=1", 1)[0]);
  const auto trainer = start("trainer", 0, 1, 0, both_steps(), {"--versions", "4"});
  const std::string json = dir_ / "report.json";
  Words words = live_words("tp=1") + Words{"--iterations", "3", "--json", json};
  words.front() = "bench";
  const Outcome outcome = run_job(2, words);
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {"NCCL broadcast of", "update, verified"}));
  // Nothing was written but updates.
  ASSERT_TRUE(engine->wait_for_output("version 4 is there"));
  for (const auto& measured : read_json(json).at("measured")) EXPECT_GT(measured.at("gb_s"), 0.0);
}

TEST_F(GpuLive, AJobThatIsKilledLeavesAnEngineThatTheNextOneWrites) {
  WEIGHTCAST_NEEDS_GPUS(2);
  const auto engine = start("engine", 0, 1, 1, references("tp=1", 1)[0]);
  const auto trainer = start("trainer", 0, 1, 0, both_steps(), {"--versions", "100"});
  for (const auto delay : {1500ms, 2500ms, 3000ms, 3500ms}) {
    SCOPED_TRACE(delay.count());
    {
      const Process job(job_command(2, live_words("tp=1")));
      std::this_thread::sleep_for(delay);
    }  // killed with all its ranks
    EXPECT_TRUE(done(run_job(2, live_words("tp=1"))));
  }
  engine->send(SIGKILL);
  const Outcome outcome = engine->wait();
  EXPECT_EQ(outcome.out.find("differs"), std::string::npos) << outcome.out;
  EXPECT_TRUE(has(outcome.out, {"is there"}));
}

TEST_F(GpuLive, WhatDoesNotFitIsRefused) {
  WEIGHTCAST_NEEDS_GPUS(2);
  const auto engine = start("engine", 0, 1, 1, references("tp=1", 1)[0]);
  const auto trainer = start("trainer", 0, 1, 0, both_steps(), {"--versions", "2"});
  const Words words = live_words("tp=1");
  EXPECT_TRUE(refused(run_job(2, words + Words{"--transport", "mpi"}), 64, {"--transport mpi", "GPUs"}));
  EXPECT_TRUE(refused(run_job(2, words, {{"CUDA_VISIBLE_DEVICES", "0"}}), 64,
                      {"does not see GPU-", "CUDA_VISIBLE_DEVICES"}));
  const std::string published = get_file(manifest("engine", 0));
  const auto change = [&](const std::string& from, const std::string& to) {
    std::string text = published;
    const std::size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos);
    text.replace(at, from.size(), to);
    put_file(manifest("engine", 0), text);
  };
  change("\"bytes\": ", "\"bytes\": 99");
  EXPECT_TRUE(refused(run_job(2, words), 65, {"engine-0.json", "publish again"}));
  change("\"handle\": \"", "\"handle\": \"f");
  EXPECT_TRUE(refused(run_job(2, words), 65, {"engine-0.json", "'handle'"}));
  const std::size_t handle = published.find("\"handle\": \"") + 11;
  change(published.substr(handle, 128), std::string(128, '7'));
  EXPECT_TRUE(refused(run_job(2, words), 74, {"engine-0.json", "cannot be opened"}));
  put_file(manifest("engine", 0), published);
  EXPECT_TRUE(done(run_job(2, words)));
  ASSERT_TRUE(engine->wait_for_output("version 1 is there"));
  engine->send(SIGKILL);
  static_cast<void>(engine->wait());
  EXPECT_TRUE(refused(run_job(2, words), 74, {"engine-0.json", "gone"}));
}

TEST_F(GpuLive, TwoEnginesOnOneGpuAreRefused) {
  WEIGHTCAST_NEEDS_GPUS(2);
  const auto shards = references("tp=2,ep=2", 2);
  const auto trainer = start("trainer", 0, 1, 0, both_steps());
  const auto first = start("engine", 0, 2, 1, shards[0]);
  const auto second = start("engine", 1, 2, 1, shards[1]);
  EXPECT_TRUE(refused(run_job(3, live_words("tp=2,ep=2")), 64, {"share GPU"}));
}

}  // namespace
}  // namespace weightcast::test_support
