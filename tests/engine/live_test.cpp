// Engines that generate text from their published memory while updates arrive, from jobs and from a server.

#include <gtest/gtest.h>
#include <signal.h>

#include <string>

#include "engine/live_engines.hpp"

namespace weightcast::engine {

namespace {

using namespace test_support;

constexpr int kUpdates = 200;
constexpr int kJobs = 40;  ///< of them, each by a job of its own; the others by one server

TEST_F(LiveEngines, GenerateFromOneVersionWhileUpdatesArrive) {
  start_trainer(1, kUpdates);
  const auto expect_texts_of = [&](int version) {
    for (const auto& process : engines_) {
      ASSERT_TRUE(process->wait_for_output("version " + std::to_string(version) + ": ")) << describe_all();
    }
  };
  for (int version = 1; version <= kJobs; ++version) {
    const Outcome outcome = run(sync_command());
    ASSERT_EQ(outcome.exit_code, 0) << describe(outcome) << describe_all();
    ASSERT_NO_FATAL_FAILURE(expect_texts_of(version));
  }
  CommandLine serve = sync_command({"--on-offer"}, "serve");
  serve.timeout = std::chrono::seconds(600);
  Process server(serve);
  for (int version = kJobs + 1; version <= kUpdates; ++version) {
    ASSERT_NO_FATAL_FAILURE(expect_texts_of(version)) << describe(server.wait());
  }
  server.send_to_children(SIGUSR1);
  const Outcome served = server.wait();
  EXPECT_EQ(served.exit_code, 75) << describe(served);
  const Outcome offered = trainer_->wait();
  EXPECT_EQ(offered.exit_code, 0) << describe(offered);
  EXPECT_NE(offered.out.find("offered " + std::to_string(kUpdates) + " 0"), std::string::npos)
      << describe(offered);
  end_engines();
  EXPECT_EQ(seen_.size(), kUpdates + 1);
}

TEST_F(LiveEngines, JobsThatDoNotFitThemAreRefused) {
  const auto refused = [](const Outcome& outcome, int code, const std::string& says) {
    EXPECT_EQ(outcome.exit_code, code) << describe(outcome);
    EXPECT_EQ(error_lines(outcome.err).size(), 1) << describe(outcome);
    EXPECT_NE(outcome.err.find(says), std::string::npos) << describe(outcome);
  };
  const Words live{"--sink", "live:" + folder_, "--source",
                   WEIGHTCAST_TEST_DATA "/python-coder-qwen3-moe/step181"};
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
  for (const auto& process : engines_) ASSERT_TRUE(process->wait_for_output("version 5: "));
  end_engines();
  EXPECT_GE(seen_.size(), 3);
}

}  // namespace

}  // namespace weightcast::engine
