// Engines whose own loader takes tensors out of a window while an update is under way.

#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <regex>
#include <string>
#include <utility>
#include <vector>

#include "engine/live_engines.hpp"
#include "storage/checkpoint.hpp"
#include "support/files.hpp"

namespace weightcast::engine {

namespace {

using namespace test_support;
using namespace std::chrono_literals;

constexpr const char* kData = WEIGHTCAST_TEST_DATA "/python-coder-qwen3-moe/";
constexpr std::int64_t kModelBytes = 1'566'144;
constexpr std::int64_t kLargestTensor = 17 * 4096;  ///< in pages
constexpr std::int64_t kBucket = 64 << 10;
constexpr std::chrono::seconds kPatience{60};

/// The numbers behind ` is there, ` in what an engine has said: the most bytes that its window took up, and
/// those that it took up afterwards.
std::vector<std::pair<std::int64_t, std::int64_t>> windows_in(const std::string& said) {
  std::vector<std::pair<std::int64_t, std::int64_t>> windows;
  const std::regex line("is there, ([0-9]+) bytes at most, ([0-9]+) left");
  for (auto at = std::sregex_iterator(said.begin(), said.end(), line); at != std::sregex_iterator(); ++at) {
    windows.emplace_back(std::stoll((*at)[1]), std::stoll((*at)[2]));
  }
  return windows;
}

/// Two engines, each of which has the whole model, and a trainer.
class LiveLoader : public ::testing::Test {
 protected:
  static constexpr int kEngines = 2;
  static constexpr std::int64_t kLimit = 200'000;

  ~LiveLoader() override {
    engines_.clear();
    trainer_.reset();
    // What killed ones have left.
    for (const auto& watched : seen_) {
      ::unlink(("/dev/shm" + watched->manifest().control).c_str());
      for (const LiveSegment& segment : watched->manifest().segments) {
        ::unlink(("/dev/shm" + segment.name).c_str());
        if (!segment.list.empty()) ::unlink(("/dev/shm" + segment.list).c_str());
      }
    }
  }

  void start_engine(int rank, std::int64_t limit, const Words& more = {}) {
    Words words{WEIGHTCAST_LOADER_ENGINE,
                "--folder",
                folder_,
                "--rank",
                std::to_string(rank),
                "--ranks",
                std::to_string(kEngines),
                "--checkpoint",
                kData + std::string("step0"),
                "--checkpoint",
                kData + std::string("step181"),
                "--limit",
                std::to_string(limit)};
    words.insert(words.end(), more.begin(), more.end());
    engines_[rank].reset();
    engines_[rank] = start(words, Role::kEngine, rank);
  }

  void start_trainer() {
    trainer_.reset();
    trainer_ =
        start({WEIGHTCAST_LIVE_TRAINER, "--folder", folder_, "--checkpoint", kData + std::string("step0"),
               "--checkpoint", kData + std::string("step181"), "--versions", "1000", "--patience", "600"},
              Role::kTrainer, 0);
  }

  /// The job step from the trainer to the engines.
  CommandLine sync_command(const Words& more = {}) const {
    Words words{WEIGHTCAST_BINARY,
                "sync",
                "--source",
                "live:" + folder_,
                "--sink",
                "live:" + folder_,
                "--model",
                kData + std::string("step0"),
                "--inference-alloc",
                "hf:d2",
                "--bucket-size",
                "64KiB"};
    words.insert(words.end(), more.begin(), more.end());
    return mpirun(1 + kEngines, words);
  }

  /// Compares what the engines serve with that checkpoint.
  CommandLine verify_command(const std::string& checkpoint) const {
    return {{WEIGHTCAST_BINARY, "verify", "live:" + folder_, "--source", kData + checkpoint,
             "--inference-alloc", "hf:d2"},
            {}};
  }

  bool says(int rank, const std::string& text) { return engines_[rank]->wait_for_output(text); }

  /// Ends an engine; what it has said.
  std::string end_engine(int rank) {
    engines_[rank]->send(SIGTERM);
    const Outcome outcome = engines_[rank]->wait();
    EXPECT_EQ(outcome.exit_code, 0) << describe(outcome);
    return outcome.out;
  }

  void expect_update(std::int64_t version) {
    const Outcome outcome = run(sync_command());
    ASSERT_EQ(outcome.exit_code, 0) << describe(outcome);
    for (int rank = 0; rank < kEngines; ++rank) {
      EXPECT_TRUE(says(rank, "version " + std::to_string(version) + " is there")) << end_engine(rank);
    }
  }

  /// The version that the trainer offers, once it does.
  std::int64_t offered() {
    const Watched& trainer = *seen_.back();
    EXPECT_TRUE(within(kPatience, [&] { return trainer.state() == WEIGHTCAST_OFFERS; }))
        << trainer.describe();
    return trainer.block().version;
  }

  std::unique_ptr<Process> start(const Words& words, Role role, int rank) {
    const std::string path = manifest_path(folder_, role, rank);
    std::error_code ignored;
    const auto before = std::filesystem::exists(path) ? read_manifest(path).generation : 0;
    CommandLine command{words, {}};
    command.timeout = 60s;
    auto process = std::make_unique<Process>(command);
    const bool there = within(kPatience, [&] {
      try {
        seen_.push_back(std::make_unique<Watched>(path));
        if (seen_.back()->manifest().generation != before) return true;
        seen_.pop_back();
      } catch (const std::exception&) {
        // Not yet.
      }
      return false;
    });
    EXPECT_TRUE(there) << path << " does not come";
    return process;
  }

  TempDir dir_;
  std::string folder_ = dir_ / "weights";
  std::map<int, std::unique_ptr<Process>> engines_;
  std::unique_ptr<Process> trainer_;
  std::vector<std::unique_ptr<Watched>> seen_;
};

TEST_F(LiveLoader, TheWindowTakesUpNoMoreThanItsLimit) {
  start_engine(0, kLimit);
  start_engine(1, 2 * kLimit, {"--batch", "8"});
  start_trainer();
  for (const std::int64_t version : {1, 2, 3}) expect_update(version);
  for (int rank = 0; rank < kEngines; ++rank) {
    const auto windows = windows_in(end_engine(rank));
    ASSERT_EQ(windows.size(), 3);
    for (const auto& [most, left] : windows) {
      EXPECT_GT(most, 0);
      EXPECT_LE(most, (rank + 1) * kLimit);
      EXPECT_EQ(left, 0);
    }
  }
}

TEST_F(LiveLoader, ATensorLargerThanTheLimitComesAlone) {
  start_engine(0, 1);
  start_engine(1, kModelBytes * 2);
  start_trainer();
  for (const std::int64_t version : {1, 2}) expect_update(version);
  for (const auto& [most, left] : windows_in(end_engine(0))) {
    // What has arrived of a tensor, and a bucket.
    EXPECT_LE(most, kLargestTensor + kBucket);
    EXPECT_EQ(left, 0);
  }
}

TEST_F(LiveLoader, SomeTensorsAreWrittenInPlace) {
  start_engine(0, kLimit, {"--direct", "self_attn"});
  start_engine(1, kLimit, {"--direct", "experts"});
  start_trainer();
  const std::string report = dir_ / "report.json";
  const Outcome outcome = run(sync_command({"--json", report}));
  ASSERT_EQ(outcome.exit_code, 0) << describe(outcome);
  for (int rank = 0; rank < kEngines; ++rank)
    EXPECT_TRUE(says(rank, "version 1 is there")) << end_engine(rank);
  const auto landing = nlohmann::json::parse(get_file(report)).at("landing");
  const auto direct = landing.at("direct_bytes").get<std::int64_t>();
  const auto loader = landing.at("loader_bytes").get<std::int64_t>();
  EXPECT_GT(direct, 0);
  EXPECT_GT(loader, 0);
  EXPECT_EQ(direct + loader, kEngines * kModelBytes);
  EXPECT_NE(outcome.out.find("through the engines' own loaders"), std::string::npos) << outcome.out;
  expect_update(2);
}

/// What vLLM's loader might do on one rank: it keeps tensors of attention as they are, and computes with
/// others.
nlohmann::json map_of(const Checkpoint& checkpoint) {
  using nlohmann::json;
  json tensors = json::array();
  json rank = {{"parameters", json::array()}, {"loader", json::array()}};
  for (const StoredTensor& tensor : checkpoint.tensors) {
    const json number = tensors.size();
    tensors.push_back({{"name", tensor.name},
                       {"dtype", dtype_safetensors_name(tensor.dtype)},
                       {"shape", tensor.shape.extents()}});
    if (tensor.name.find("self_attn") == std::string::npos) {
      rank["loader"].push_back({{"tensor", number}, {"why", "aten.exp computes"}});
      continue;
    }
    rank["parameters"].push_back(tensors.back());
    rank["parameters"].back()["parts"] = {{number, 0, tensor.shape.rows(), 0, tensor.shape.cols(), 0, 0}};
  }
  const json layout = {{"tp", 1}, {"pp", 1}, {"ep", 1}};
  json made_for = layout;
  made_for.update({{"engine", "vllm"}, {"engine_version", "0.32.0"}, {"architecture", "TestForCausalLM"}});
  return {
      {"landing", 1},         {"engine", "vllm"}, {"engine_version", "0.32.0"}, {"key", std::string(64, 'a')},
      {"made_for", made_for}, {"layout", layout}, {"tensors", tensors},         {"ranks", {rank}}};
}

TEST_F(LiveLoader, AMapSaysWhatGoesThroughTheLoader) {
  const std::string map = dir_ / "map.json";
  put_file(map, map_of(read_checkpoint(kData + std::string("step0"))).dump());
  const std::string report = dir_ / "report.json";
  const auto sync_by_map = [&] {
    return run(mpirun(1 + kEngines, {WEIGHTCAST_BINARY, "sync", "--source", "live:" + folder_, "--sink",
                                     "live:" + folder_, "--landing", map, "--inference-alloc", "vllm:d2t1",
                                     "--bucket-size", "64KiB", "--json", report}));
  };
  const Words in_place{"--layout", "vllm:d2t1", "--direct", "self_attn"};
  start_engine(0, kLimit, in_place);
  start_engine(1, kLimit, in_place);
  start_trainer();
  for (const std::string version : {"1", "2"}) {
    const Outcome outcome = sync_by_map();
    ASSERT_EQ(outcome.exit_code, 0) << describe(outcome);
    for (int rank = 0; rank < kEngines; ++rank)
      EXPECT_TRUE(says(rank, "version " + version + " is there")) << end_engine(rank);
    const auto landing = nlohmann::json::parse(get_file(report)).at("landing");
    const auto direct = landing.at("direct_bytes").get<std::int64_t>();
    EXPECT_GT(direct, 0);
    EXPECT_EQ(direct + landing.at("loader_bytes").get<std::int64_t>(), kEngines * kModelBytes);
  }
  // Without a config: the map has the loader's tensors, and not what it makes of them.
  const std::string weights = dir_ / "model.safetensors";
  std::filesystem::copy_file(kData + std::string("step0/model.safetensors"), weights);
  const Outcome verified = run({{WEIGHTCAST_BINARY, "verify", "live:" + folder_, "--source", weights,
                                 "--landing", map, "--inference-alloc", "vllm:d2t1", "--json", report},
                                {}});
  EXPECT_EQ(verified.exit_code, 0) << describe(verified);
  const auto compared = nlohmann::json::parse(get_file(report));
  EXPECT_GT(compared.at("bytes").get<std::int64_t>(), 0);
  EXPECT_EQ(compared.at("bytes").get<std::int64_t>() + compared.at("loader_bytes").get<std::int64_t>(),
            kEngines * kModelBytes);
  // In place it would be what the loader has to compute with.
  start_engine(1, kLimit, {"--layout", "vllm:d2t1", "--direct", "layers"});
  const Outcome outcome = sync_by_map();
  EXPECT_EQ(outcome.exit_code, 65) << describe(outcome);
  EXPECT_EQ(error_lines(outcome.err).size(), 1) << describe(outcome);
  for (const char* word :
       {"engine-1.json: tensor model.layers.", "no window is published for it", "\"learn\""})
    EXPECT_NE(outcome.err.find(word), std::string::npos) << word << describe(outcome);
}

TEST_F(LiveLoader, AnEngineThatGivesUpOrDiesAmidAnUpdate) {
  start_engine(0, kLimit, {"--at", "40", "--does", "gives up"});
  start_engine(1, kLimit);
  start_trainer();
  const auto expect_failed = [&](const std::string& says_why) {
    const Outcome outcome = run(sync_command());
    EXPECT_EQ(outcome.exit_code, 74) << describe(outcome);
    EXPECT_EQ(error_lines(outcome.err).size(), 1) << describe(outcome);
    EXPECT_NE(outcome.err.find(says_why), std::string::npos) << describe(outcome);
    // The other one, too, has no whole version.
    EXPECT_TRUE(says(1, "paused 65 no version is in memory: rank 1 ")) << end_engine(1);
  };
  expect_failed("has given up amid the update: a test wants it so");
  EXPECT_TRUE(says(0, "paused 65 no version is in memory: a test wants it so"));
  expect_update(offered());
  start_engine(0, kLimit, {"--at", "3", "--does", "dies"});
  start_engine(1, kLimit);
  start_trainer();
  expect_failed("engine-0.json: engine 0 ");
  start_engine(0, kLimit);
  start_trainer();
  expect_update(offered());
}

TEST_F(LiveLoader, AnEngineThatTakesNothing) {
  start_engine(0, kLimit, {"--at", "40", "--does", "stops"});
  start_engine(1, kLimit);
  start_trainer();
  const Outcome outcome = run(sync_command({"--timeout", "12"}));
  EXPECT_EQ(outcome.exit_code, 76) << describe(outcome);
  EXPECT_EQ(error_lines(outcome.err).size(), 1) << describe(outcome);
  EXPECT_NE(outcome.err.find("engine-0.json: engine 0 "), std::string::npos) << describe(outcome);
  EXPECT_NE(outcome.err.find("that lie in its window within 3 s"), std::string::npos) << describe(outcome);
  engines_[0]->send(SIGCONT);
  EXPECT_TRUE(says(0, "paused 65 "));
  EXPECT_TRUE(says(1, "paused 65 "));
  expect_update(offered());
  for (int rank = 0; rank < kEngines; ++rank) {
    const std::string said = end_engine(rank);
    EXPECT_NE(said.find(", 0 left\n"), std::string::npos) << said;
    EXPECT_EQ(windows_in(said).size(), 1) << said;
  }
}

TEST_F(LiveLoader, AJobStepThatIsKilledAmidAnUpdate) {
  start_engine(0, kLimit, {"--at", "40", "--does", "stops"});
  start_engine(1, kLimit);
  start_trainer();
  auto job = std::make_unique<Process>(sync_command());
  const Watched& stopped = *seen_.front();
  ASSERT_TRUE(within(kPatience, [&] { return stopped.describe().find(" is 'T'") != std::string::npos; }))
      << stopped.describe();
  job->send_to_children(SIGKILL);
  job.reset();
  engines_[0]->send(SIGCONT);
  for (int rank = 0; rank < kEngines; ++rank) {
    EXPECT_TRUE(says(rank, "paused 65 no version is in memory: the job step died while it wrote"))
        << end_engine(rank);
  }
  expect_update(offered());
}

TEST_F(LiveLoader, NoPartGoesThroughAWindow) {
  start_engine(0, kLimit);
  start_engine(1, kLimit);
  start_trainer();
  const Outcome outcome = run(sync_command({"--include", "*.experts.*"}));
  EXPECT_EQ(outcome.exit_code, 64) << describe(outcome);
  EXPECT_NE(outcome.err.find("its tensors come through a window"), std::string::npos) << describe(outcome);
  EXPECT_NE(outcome.err.find("leave --include and --exclude out"), std::string::npos) << describe(outcome);
  expect_update(1);
}

TEST_F(LiveLoader, AJobWithMemoryOnAGpuIsRefused) {
  start_engine(0, kLimit);
  start_engine(1, kLimit);
  start_trainer();
  const std::string path = manifest_path(folder_, Role::kTrainer, 0);
  std::string text = get_file(path);
  const std::string shared = R"({"kind": "shm")";
  const std::size_t at = text.find(shared);
  ASSERT_NE(at, std::string::npos) << text;
  text.replace(at, shared.size(),
               R"({"kind": "cuda_ipc", "device": "GPU-9832eea0-ced8-8bb0-9a41-9e53e9d09023", "handle": ")" +
                   std::string(2 * LiveSegment::kHandleBytes, '0') + '"');
  put_file(path, text);
  const Outcome outcome = run(sync_command());
  EXPECT_EQ(outcome.exit_code, 65) << describe(outcome);
  EXPECT_EQ(error_lines(outcome.err).size(), 1) << describe(outcome);
  EXPECT_NE(outcome.err.find("engine-0.json: its tensors come through a window"), std::string::npos)
      << describe(outcome);
}

TEST_F(LiveLoader, WhatIsNotPublishedIsNotVerified) {
  start_engine(0, kLimit);
  start_engine(1, kLimit);
  start_trainer();
  expect_update(1);
  const Outcome outcome = run(verify_command("step181"));
  EXPECT_EQ(outcome.exit_code, 64) << describe(outcome);
  EXPECT_EQ(error_lines(outcome.err).size(), 1) << describe(outcome);
  EXPECT_NE(outcome.err.find("its own loader takes all tensors out of a window"), std::string::npos);
}

TEST_F(LiveLoader, WhatIsInPlaceBesideAWindowIsVerified) {
  start_engine(0, kLimit, {"--direct", "mlp"});
  start_engine(1, kLimit, {"--direct", "self_attn"});
  start_trainer();
  expect_update(1);
  const Outcome outcome = run(verify_command("step181"));
  EXPECT_EQ(outcome.exit_code, 0) << describe(outcome);
  EXPECT_NE(outcome.out.find("2 of 2 engines serve version 1 and hold "), std::string::npos) << outcome.out;
  EXPECT_NE(
      outcome.out.find(" went through the engines' own loaders, and what these made of it is not compared"),
      std::string::npos)
      << outcome.out;
  const Outcome other = run(verify_command("step0"));
  EXPECT_EQ(other.exit_code, 66) << describe(other);
  EXPECT_EQ(error_lines(other.err).size(), 1) << describe(other);
}

}  // namespace

}  // namespace weightcast::engine
