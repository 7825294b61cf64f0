// Jobs that meet another one, and exporters that do not do what a job waits for: nothing is written then.

#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <memory>
#include <ostream>
#include <string>
#include <thread>

#include "engine/live_engines.hpp"
#include "support/files.hpp"

namespace weightcast::engine {

namespace {

using namespace test_support;

/// A job that begins with `--timeout`: the first wait of an update lasts a quarter of that.
const Words kShortWaits{"--timeout", "12"};

class LiveAnswers : public LiveEngines {
 protected:
  void SetUp() override {
    start_trainer(1, 1'000'000);
    expect_a_good_update();
  }

  /// That the job has failed for that reason, and all engines serve version 1 as before.
  void expect_nothing_written(const Outcome& outcome, int code, const std::string& says) {
    EXPECT_EQ(outcome.exit_code, code) << describe(outcome) << describe_all();
    EXPECT_EQ(error_lines(outcome.err).size(), 1) << describe(outcome);
    EXPECT_NE(outcome.err.find(says), std::string::npos) << describe(outcome);
    for (int rank = 0; rank < kEngineRanks; ++rank) {
      ASSERT_TRUE(within(kPatience, [&] { return engine(rank).state() == WEIGHTCAST_SERVING; }))
          << describe_all();
      expect_true_memory(rank);
    }
  }
};

TEST_F(LiveAnswers, AJobThatFindsAnotherNamesItAndGoes) {
  CommandLine command = sync_command();
  command.environment["LD_PRELOAD"] = WEIGHTCAST_STOP_AT_STATE;
  command.environment["STOP_RANK"] = "2";
  command.environment["STOP_AT"] = std::to_string(WEIGHTCAST_WRITING);
  Process first(command);
  ASSERT_TRUE(within(kPatience, [&] { return engine(1).state() == WEIGHTCAST_WRITING; })) << describe_all();
  const Outcome second = run(sync_command());
  EXPECT_EQ(second.exit_code, 74) << describe(second);
  EXPECT_EQ(error_lines(second.err).size(), 1) << describe(second);
  EXPECT_NE(second.err.find("is in an update of another job (process "), std::string::npos)
      << describe(second);
  EXPECT_NE(second.err.find("rank 1 on "), std::string::npos) << describe(second);
  // The first one's states are as it left them.
  EXPECT_EQ(engine(1).state(), WEIGHTCAST_WRITING) << describe_all();
  ASSERT_TRUE(within(kPatience, [&] {
    first.send_to_children(SIGCONT);
    return !first.running();
  })) << describe_all();
  const Outcome outcome = first.wait();
  EXPECT_EQ(outcome.exit_code, 0) << describe(outcome);
  expect_all_serve(2);
  end_engines();
}

TEST_F(LiveAnswers, ATrainersMemoryThatIsCutAmidAnUpdateIsNoVersion) {
  CommandLine command = sync_command();
  command.environment["LD_PRELOAD"] = WEIGHTCAST_STOP_AT_STATE;
  command.environment["STOP_RANK"] = "2";
  command.environment["STOP_AT"] = std::to_string(WEIGHTCAST_WRITING);
  Process job(command);
  ASSERT_TRUE(within(kPatience, [&] { return engine(1).state() == WEIGHTCAST_WRITING; })) << describe_all();
  // Nobody has read it; by now all should have looked whether it is there.
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  std::filesystem::resize_file("/dev/shm" + trainer().manifest().segments.front().name, 4096);
  ASSERT_TRUE(within(kPatience, [&] {
    job.send_to_children(SIGCONT);
    return !job.running();
  })) << describe_all();
  const Outcome outcome = job.wait();
  EXPECT_EQ(outcome.exit_code, 74) << describe(outcome);
  EXPECT_EQ(error_lines(outcome.err).size(), 1) << describe(outcome);
  EXPECT_NE(outcome.err.find("trainer-0.json: memory that its exporter has published has shrunk"),
            std::string::npos)
      << describe(outcome);
  for (int rank = 0; rank < kEngineRanks; ++rank) {
    ASSERT_TRUE(within(kPatience, [&] { return engine(rank).at_rest(); })) << describe_all();
    // A job that has looked only now finds it before anything is written.
    EXPECT_TRUE(engine(rank).state() == WEIGHTCAST_INVALID || engine(rank).block().version == 1)
        << describe_all();
    expect_true_memory(rank);
  }
  trainer_->send(SIGKILL);
  static_cast<void>(trainer_->wait());
  start_trainer(3, 1'000'000);
  expect_a_good_update();
  end_engines();
}

/// Who is stopped when, and what the job's line then says.
struct Hang {
  const char* rank;
  const char* stop_at;
  const char* says;
  bool told_to_stop;  ///< or out of time

  friend std::ostream& operator<<(std::ostream& out, const Hang& hang) {
    return out << "rank " << hang.rank << " at " << hang.stop_at;
  }
};

class LiveHangs : public LiveAnswers, public ::testing::WithParamInterface<Hang> {};

TEST_P(LiveHangs, AJobThatEndsAmidAnUpdateSaysWhatItLeaves) {
  const Hang& hang = GetParam();
  CommandLine command = sync_command({"--timeout", hang.told_to_stop ? "1000" : "20"});
  command.environment["LD_PRELOAD"] = WEIGHTCAST_STOP_AT_STATE;
  command.environment["STOP_RANK"] = hang.rank;
  command.environment["STOP_AT"] = hang.stop_at;
  Process job(command);
  if (hang.told_to_stop) {
    ASSERT_TRUE(within(kPatience, [&] { return engine(1).state() == WEIGHTCAST_WRITING; })) << describe_all();
    for (const pid_t rank : job.children()) {
      if (get_file("/proc/" + std::to_string(rank) + "/environ").find("OMPI_COMM_WORLD_RANK=0") !=
          std::string::npos) {
        ::kill(rank, SIGTERM);
      }
    }
  }
  const Outcome outcome = job.wait();
  EXPECT_EQ(outcome.exit_code, hang.told_to_stop ? 75 : 76) << describe(outcome) << describe_all();
  EXPECT_EQ(error_lines(outcome.err).size(), 1) << describe(outcome);
  EXPECT_NE(outcome.err.find(hang.says), std::string::npos) << describe(outcome);
  const bool committed = std::string(hang.stop_at) == "recorded";
  for (int rank = 0; rank < kEngineRanks; ++rank) {
    ASSERT_TRUE(within(kPatience, [&] { return engine(rank).at_rest(); })) << describe_all();
    expect_true_memory(rank);
  }
  // One at least has been written, or all have what was recorded.
  if (committed) {
    EXPECT_EQ(engine(0).block().version, 2) << describe_all();
  }
  EXPECT_EQ(engine(0).state() == WEIGHTCAST_SERVING, committed) << describe_all();
  expect_a_good_update();
  end_engines();
}

INSTANTIATE_TEST_SUITE_P(
    Of, LiveHangs,
    ::testing::Values(Hang{"1", "5", "the engines that were being written are invalid", false},
                      Hang{"2", "5", "the engines that were being written are invalid", true},
                      Hang{
                          "0", "recorded",
                          "whether version 2 is committed its record says: weightcast inspect live:", false}),
    [](const ::testing::TestParamInfo<Hang>& of) { return "Case" + std::to_string(of.index); });

TEST_F(LiveAnswers, AVersionOfATrainerThatWasStartedAnewIsSentAgain) {
  trainer_->send(SIGKILL);
  static_cast<void>(trainer_->wait());
  // The number that the engines have, from another publication.
  start_trainer(1, 1'000'000);
  ASSERT_TRUE(within(kPatience, [&] { return trainer().state() == WEIGHTCAST_OFFERS; })) << describe_all();
  const std::uint64_t before = engine(0).update();
  const Outcome outcome = run(sync_command());
  EXPECT_EQ(outcome.exit_code, 0) << describe(outcome);
  EXPECT_NE(outcome.err.find("not known to be from this source; it is sent"), std::string::npos)
      << describe(outcome);
  expect_all_serve(1);
  EXPECT_GT(engine(0).update(), before);
  end_engines();
}

TEST_F(LiveAnswers, OfTwoJobsThatBeginAtOnceOneAtLeastSucceeds) {
  constexpr int kRounds = 6;
  for (int round = 0; round < kRounds; ++round) {
    SCOPED_TRACE(round);
    const auto one = std::make_unique<Process>(sync_command());
    const auto other = std::make_unique<Process>(sync_command());
    const Outcome outcomes[] = {one->wait(), other->wait()};
    EXPECT_TRUE(outcomes[0].exit_code == 0 || outcomes[1].exit_code == 0)
        << describe(outcomes[0]) << describe(outcomes[1]) << describe_all();
    for (const Outcome& outcome : outcomes) {
      if (outcome.exit_code == 0) continue;
      EXPECT_EQ(outcome.exit_code, 74) << describe(outcome);
      EXPECT_EQ(error_lines(outcome.err).size(), 1) << describe(outcome);
      EXPECT_NE(outcome.err.find("another job"), std::string::npos) << describe(outcome);
    }
    ASSERT_TRUE(within(kPatience, [&] { return engine(0).state() == WEIGHTCAST_SERVING; })) << describe_all();
    expect_all_serve(engine(0).block().version);
    if (HasFatalFailure()) return;
  }
  end_engines();
}

TEST_F(LiveAnswers, ARecordThatIsLeftStandsForNoLaterUpdate) {
  put_file(folder_ + "/commit-900.json", "void\n");
  // Of a job step that was killed before it gave the record its name.
  put_file(folder_ + "/commit-3.json.new", "{}");
  expect_a_good_update();
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/commit-3.json.new"));
  EXPECT_EQ(engine(0).update(), 901);
  end_engines();
}

TEST_F(LiveAnswers, AnEngineThatDoesNotAnswerIsWaitedForInVain) {
  ::kill(engine(2).process(), SIGSTOP);
  const Outcome outcome = run(sync_command(kShortWaits));
  expect_nothing_written(outcome, 76, "has not paused within 3 s; nothing was written");
  ::kill(engine(2).process(), SIGCONT);
  expect_a_good_update();
  end_engines();
}

TEST_F(LiveAnswers, AnEngineThatDeclinesKeepsWhatItHas) {
  bury_engine(1);
  start_engine(1, {"--declines"});
  // Its other rank says nothing, and is not waited for.
  const Outcome outcome = run(sync_command());
  expect_nothing_written(outcome, 74, "has declined: a test wants it so");
  bury_engine(1);
  start_engine(1);
  expect_a_good_update();
  end_engines();
}

TEST_F(LiveAnswers, ATrainerThatTakesItsOffersBackChangesNothingThatIsRead) {
  trainer_->send(SIGKILL);
  static_cast<void>(trainer_->wait());
  start_trainer(2, 1'000'000, "0.05");
  int updates = 0;
  for (int job = 0; job < 6; ++job) {
    const Outcome outcome = run(sync_command());
    EXPECT_TRUE(outcome.exit_code == 0 || outcome.exit_code == 74) << describe(outcome);
    const bool withdrawn = outcome.err.find("withdrawn") != std::string::npos;
    EXPECT_EQ(withdrawn, outcome.exit_code == 74) << describe(outcome);
    if (outcome.exit_code == 0) ++updates;
    for (int rank = 0; rank < kEngineRanks; ++rank) {
      ASSERT_TRUE(within(kPatience, [&] { return engine(rank).state() == WEIGHTCAST_SERVING; }))
          << describe_all();
      expect_true_memory(rank);
      EXPECT_EQ(engine(rank).block().version, engine(0).block().version) << describe_all();
    }
  }
  EXPECT_GT(updates, 0);
  end_engines();
}

}  // namespace

}  // namespace weightcast::engine
