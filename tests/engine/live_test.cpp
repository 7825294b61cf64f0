// Two engines that generate text from their published memory while updates arrive, and a trainer that offers
// them; all are processes of their own, and so is every update.

#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <map>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "engine/files.hpp"
#include "engine/model_config.hpp"
#include "engine/vocabulary.hpp"
#include "support/process.hpp"
#include "support/temp_dir.hpp"

namespace weightcast::engine {

namespace {

using namespace std::chrono_literals;
using namespace test_support;

using Words = std::vector<std::string>;

constexpr std::int64_t kTokens = 24;

std::string step(int number) {
  return std::string(WEIGHTCAST_TEST_DATA "/python-coder-qwen3-moe/step") + std::to_string(number);
}

/// What a model of that version says, as its reference implementation does.
std::string reference_text(int number) {
  const Reference reference = read_reference(step(number) + "/reference.safetensors");
  std::vector<std::int64_t> ids = reference.greedy;
  ids.resize(std::min(ids.size(), reference.prompt.size() + static_cast<std::size_t>(kTokens)));
  return printable_text(ids, parse_model_config(read_text(step(number) + "/config.json")).vocab);
}

/// What an engine has printed: `version 3: …` of each text, in their order.
std::vector<std::pair<std::int64_t, std::string>> texts_in(const std::string& out) {
  std::vector<std::pair<std::int64_t, std::string>> texts;
  std::istringstream lines(out);
  for (std::string line; std::getline(lines, line);) {
    constexpr std::string_view kPrefix = "version ";
    const std::size_t colon = line.find(": ");
    if (!line.starts_with(kPrefix) || colon == std::string::npos) continue;
    texts.emplace_back(std::stoll(line.substr(kPrefix.size())), line.substr(colon + 2));
  }
  return texts;
}

class LiveEngines : public ::testing::Test {
 protected:
  LiveEngines() {
    const Outcome cut = run({{WEIGHTCAST_ENGINE_CUT, "--checkpoint", step(0), "--out", shards_, "--tp", "2",
                              "--ep", "2", "--replicas", "2", "--moe-layout", "triton"},
                             {}});
    if (cut.exit_code != 0) throw std::runtime_error(describe(cut));
    for (const char* replica : {"0", "1"}) {
      CommandLine command =
          mpirun(2, {WEIGHTCAST_LIVE_ENGINE, "--folder", folder_, "--shards", shards_, "--replica", replica,
                     "--config", step(0) + "/config.json", "--reference", step(0) + "/reference.safetensors",
                     "--tokens", std::to_string(kTokens)});
      command.timeout = 170s;
      engines_.push_back(std::make_unique<Process>(command));
    }
    for (const auto& engine : engines_) {
      if (!engine->wait_for_output("version 0: ")) throw std::runtime_error(describe(engine->wait()));
    }
  }

  /// A trainer whose version v has the weights of step 0 when v is even, else those of step 181.
  std::unique_ptr<Process> start_trainer(int versions) const {
    CommandLine command{
        {WEIGHTCAST_LIVE_TRAINER, "--folder", folder_, "--checkpoint", step(0), "--checkpoint", step(181),
         "--versions", std::to_string(versions), "--patience", "150"},
        {}};
    command.timeout = 170s;
    return std::make_unique<Process>(command);
  }

  CommandLine sync_command(const Words& more = {}) const {
    Words words{WEIGHTCAST_BINARY, "sync",    "--source", "live:" + folder_, "--sink",
                "live:" + folder_, "--model", step(0),    "--inference",     "tp=2,ep=2,replicas=2",
                "--bucket-size",   "64KiB"};
    words.insert(words.end(), more.begin(), more.end());
    return mpirun(5, words);
  }

  /// Ends the engines, and looks at every text that they have generated: it is wholly that of its version.
  void expect_texts_of_one_version_each(std::size_t versions_at_least) {
    std::map<int, std::string> expected{{0, reference_text(0)}, {1, reference_text(181)}};
    ASSERT_NE(expected[0], expected[1]);
    for (const auto& engine : engines_) {
      engine->send(SIGTERM);
      const Outcome outcome = engine->wait();
      const auto texts = texts_in(outcome.out);
      std::map<std::int64_t, int> seen;
      for (const auto& [version, text] : texts) {
        ++seen[version];
        EXPECT_EQ(text, expected[static_cast<int>(version % 2)]) << "of version " << version;
      }
      EXPECT_GE(seen.size(), versions_at_least) << describe(outcome);
    }
  }

  TempDir dir_;
  std::string folder_ = dir_ / "weights";
  std::string shards_ = dir_ / "shards";
  std::vector<std::unique_ptr<Process>> engines_;
};

TEST_F(LiveEngines, GenerateFromOneVersionWhileUpdatesArrive) {
  constexpr int kUpdates = 8;
  const auto trainer = start_trainer(kUpdates);
  ASSERT_TRUE([&] {
    while (!std::filesystem::exists(folder_ + "/trainer-0.json")) {
      if (!trainer->running()) return false;
      std::this_thread::sleep_for(10ms);
    }
    return true;
  }());
  for (int version = 1; version <= kUpdates; ++version) {
    const Outcome outcome = run(sync_command());
    ASSERT_EQ(outcome.exit_code, 0) << describe(outcome);
    for (const auto& engine : engines_) {
      ASSERT_TRUE(engine->wait_for_output("version " + std::to_string(version) + ": "));
    }
  }
  const Outcome offered = trainer->wait();
  EXPECT_EQ(offered.exit_code, 0) << describe(offered);
  EXPECT_NE(offered.out.find("offered 8 0"), std::string::npos) << describe(offered);
  expect_texts_of_one_version_each(kUpdates + 1);
}

TEST_F(LiveEngines, AreTrueWhateverKillsTheJobStep) {
  constexpr int kKills = 12;
  const auto trainer = start_trainer(100);
  std::mt19937 random(17);
  // From the start of the ranks to the end of an update, on a machine that may be slow.
  std::uniform_int_distribution<int> delay(200, 1600);
  for (int kill = 0; kill < kKills; ++kill) {
    SCOPED_TRACE(kill);
    {
      Process job(sync_command());
      std::this_thread::sleep_for(std::chrono::milliseconds(delay(random)));
      // Now and then one rank alone, whose end the launcher makes the others' end.
      const std::vector<pid_t> ranks = job.children();
      if (kill % 3 == 0 && !ranks.empty()) {
        ::kill(ranks[random() % ranks.size()], SIGKILL);
        static_cast<void>(job.wait());
      }
    }  // killed with all its ranks
    const Outcome outcome = run(sync_command());
    ASSERT_EQ(outcome.exit_code, 0) << describe(outcome);
  }
  trainer->send(SIGKILL);
  expect_texts_of_one_version_each(kKills);
}

TEST_F(LiveEngines, JobsThatDoNotFitThemAreRefused) {
  const auto refused = [](const Outcome& outcome, int code, const std::string& says) {
    EXPECT_EQ(outcome.exit_code, code) << describe(outcome);
    EXPECT_EQ(error_lines(outcome.err).size(), 1) << describe(outcome);
    EXPECT_NE(outcome.err.find(says), std::string::npos) << describe(outcome);
  };
  const Words live{"--sink", "live:" + folder_, "--source", step(181)};
  const auto job = [&](int ranks, const Words& more) {
    Words words{WEIGHTCAST_BINARY, "sync"};
    words.insert(words.end(), live.begin(), live.end());
    words.insert(words.end(), more.begin(), more.end());
    return run(mpirun(ranks, words));
  };
  refused(job(3, {"--inference", "tp=2,ep=2"}), 65, "is one of 4 engines, but the job's layout has 2");
  refused(job(5, {"--inference", "tp=4,ep=4"}), 65, "in the engine's layout");
  refused(job(5, {"--inference", "tp=2,ep=2,replicas=2", "--moe-layout", "triton-kernels"}), 65, "w2_weight");
  refused(job(5, {"--inference", "tp=2,ep=2,replicas=2", "--no-verify"}), 64, "--no-verify");
  refused(run(sync_command({"--weight-version", "3"})), 64, "--weight-version");
  // Nobody has been asked, let alone written. From files they can be given a version, but no older one.
  const Words fits{"--inference", "tp=2,ep=2,replicas=2", "--weight-version"};
  Words words = fits;
  words.emplace_back("7");
  EXPECT_EQ(job(5, words).exit_code, 0);
  // That version is there already.
  EXPECT_EQ(job(5, words).exit_code, 0);
  words.back() = "5";
  refused(job(5, words), 64, "--allow-older");
  words.emplace_back("--allow-older");
  EXPECT_EQ(job(5, words).exit_code, 0);
  for (const auto& engine : engines_) ASSERT_TRUE(engine->wait_for_output("version 5: "));
  expect_texts_of_one_version_each(3);
}

}  // namespace

}  // namespace weightcast::engine
