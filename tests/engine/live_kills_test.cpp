// `kill -9` of the job step, of one of its ranks, of a trainer or of an engine's rank: between each pair of
// neighbouring states of an update, and at random moments. Afterwards the blocks and the commit's record are
// true, the next update succeeds, and nobody waits for ever.
//
// LIVE_KILL_ROUNDS (default 1): how often each test goes through all states. With 3 there are 132 kills.

#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/live_engines.hpp"

namespace weightcast::engine {

namespace {

using namespace test_support;
using namespace std::chrono_literals;

int rounds() {
  const char* text = std::getenv("LIVE_KILL_ROUNDS");
  return text == nullptr ? 1 : std::max(1, std::atoi(text));
}

enum class Victim : std::uint8_t { kJobRank, kJob, kTrainer, kEngineRank };

std::string name_of(const ::testing::TestParamInfo<Victim>& of) {
  constexpr const char* kNames[] = {"OneRankOfTheJobStep", "TheJobStep", "ATrainer", "OneRankOfAnEngine"};
  return kNames[static_cast<int>(of.param)];
}

/// Who would end the state, and is stopped so that it lasts.
enum class Held : std::uint8_t { kJobRank, kEngineRank, kOtherEngine, kTrainer };

/// When an update is interrupted: a block has that state.
struct Moment {
  const char* name;
  Role role;  ///< whose block
  weightcast_state state;
  Held held;
  const char* stop_at;  ///< of the job's rank, as stop_at_state.cpp reads it
};

constexpr Moment kMoments[] = {
    {"offers", Role::kTrainer, WEIGHTCAST_OFFERS, Held::kJobRank, "taken"},
    {"being read", Role::kTrainer, WEIGHTCAST_BEING_READ, Held::kJobRank, "10"},
    {"asked", Role::kEngine, WEIGHTCAST_ASKED, Held::kEngineRank, ""},
    {"paused", Role::kEngine, WEIGHTCAST_PAUSED, Held::kOtherEngine, ""},
    {"writing", Role::kEngine, WEIGHTCAST_WRITING, Held::kJobRank, "5"},
    {"written", Role::kEngine, WEIGHTCAST_WRITTEN, Held::kJobRank, "6"},
    {"recorded", Role::kEngine, WEIGHTCAST_WRITTEN, Held::kJobRank, "recorded"},
    {"committed", Role::kEngine, WEIGHTCAST_COMMITTED, Held::kEngineRank, "6,7"},
    {"read", Role::kTrainer, WEIGHTCAST_READ, Held::kTrainer, "11"},
};
static_assert(WEIGHTCAST_BEING_READ == 10 && WEIGHTCAST_WRITING == 5 && WEIGHTCAST_WRITTEN == 6 &&
              WEIGHTCAST_COMMITTED == 7 && WEIGHTCAST_READ == 11);

/// What an engine's rank that lives may have afterwards.
enum class Left : std::uint8_t {
  kOld,      ///< what it had
  kNew,      ///< what the update brings
  kNothing,  ///< no version, or what it had where it has not been written yet
  kEither    ///< whichever its block says
};

Left left_by(const Moment& moment, Victim victim) {
  const std::string name = moment.name;
  if (name == "recorded" || name == "committed" || name == "read") return Left::kNew;
  // The other ranks of the job may go on with what the dead one has said before.
  if (victim == Victim::kJobRank) return Left::kEither;
  if (name != "writing" && name != "written") return Left::kOld;
  if (victim == Victim::kJob) return Left::kNothing;
  // An engine's rank that is gone needs nothing; what a trainer that is gone has sent may be half of it.
  return victim == Victim::kTrainer && name == "writing" ? Left::kNothing : Left::kNew;
}

class LiveKills : public LiveEngines, public ::testing::WithParamInterface<Victim> {
 protected:
  /// What all blocks said before the update that is interrupted.
  struct Before {
    std::int64_t offered = 0;
    std::uint64_t update = 0;  ///< the last
    std::int64_t version[kEngineRanks] = {};
  };

  void SetUp() override {
    start_trainer(1, 1'000'000);
    const Outcome outcome = run(sync_command());
    ASSERT_EQ(outcome.exit_code, 0) << describe(outcome);
    expect_all_serve(1);
  }

  void stop(pid_t process) {
    ::kill(process, SIGSTOP);
    stopped_.push_back(process);
  }

  void go_on(Process& job) {
    for (const pid_t process : stopped_) ::kill(process, SIGCONT);
    job.send_to_children(SIGCONT);
  }

  /// Starts an update and lets it come as far as that moment, of the block of the engine's rank or of the
  /// trainer's. Null when it does not come there.
  std::unique_ptr<Process> reach(const Moment& moment, int rank) {
    const Watched& block = moment.role == Role::kEngine ? engine(rank) : trainer();
    if (moment.held == Held::kEngineRank && moment.state == WEIGHTCAST_ASKED) stop(engine(rank).process());
    if (moment.held == Held::kOtherEngine) stop(engine((rank + kTp) % kEngineRanks).process());
    if (moment.held == Held::kTrainer) stop(trainer().process());
    CommandLine command = sync_command();
    const bool first_rank = moment.role == Role::kTrainer || std::string(moment.name) == "recorded";
    const int job_rank = first_rank ? 0 : 1 + rank;
    command.environment["LD_PRELOAD"] = WEIGHTCAST_STOP_AT_STATE;
    command.environment["STOP_RANK"] = std::to_string(job_rank);
    command.environment["STOP_AT"] = moment.stop_at;
    auto job = std::make_unique<Process>(command);
    const auto rank_has_stopped = [&] {
      const std::vector<pid_t> ranks = job->children();
      return ranks.size() == 1 + kEngineRanks && is_stopped(ranks.at(static_cast<std::size_t>(job_rank)));
    };
    if (moment.state == WEIGHTCAST_COMMITTED) {
      if (!within(kPatience, rank_has_stopped)) return nullptr;
      stop(engine(rank).process());
      job->send_to_children(SIGCONT);
    }
    if (!within(kPatience, [&] { return block.state() == moment.state; })) return nullptr;
    const bool stops = *moment.stop_at != '\0';
    if (stops && !within(kPatience, rank_has_stopped)) return nullptr;
    return block.state() == moment.state ? std::move(job) : nullptr;
  }

  /// Kills the victim; `rank` is the engine's.
  void kill_victim(std::unique_ptr<Process>& job, int rank) {
    switch (GetParam()) {
      case Victim::kJobRank: {
        const std::vector<pid_t> ranks = job->children();
        if (!ranks.empty()) ::kill(ranks[random_() % ranks.size()], SIGKILL);
        return;
      }
      case Victim::kJob:
        job.reset();
        return;
      case Victim::kTrainer:
        trainer_->send(SIGKILL);
        static_cast<void>(trainer_->wait());
        return;
      case Victim::kEngineRank:
        ::kill(engine(rank).process(), SIGKILL);
        return;
    }
  }

  /// Lets everybody who lives go on, and waits for the end of the job.
  void let_go_on(std::unique_ptr<Process>& job) {
    if (!job) {
      for (const pid_t process : stopped_) ::kill(process, SIGCONT);
      stopped_.clear();
      return;
    }
    // Again and again: the rank may stop itself once more.
    const bool ended = within(kPatience, [&] {
      go_on(*job);
      return !job->running();
    });
    stopped_.clear();
    ASSERT_TRUE(ended) << "the job waits for ever\n" << describe_all();
    const Outcome outcome = job->wait();
    job.reset();
    if (GetParam() == Victim::kJobRank) return;
    EXPECT_TRUE(outcome.exit_code == 0 || outcome.exit_code == 74) << describe(outcome) << describe_all();
    EXPECT_EQ(error_lines(outcome.err).size(), outcome.exit_code == 0 ? 0 : 1) << describe(outcome);
  }

  bool lives(int rank) const { return GetParam() != Victim::kEngineRank || rank / kTp != dead_replica_; }

  Before before() const {
    Before before;
    before.offered = trainer().block().version;
    for (int rank = 0; rank < kEngineRanks; ++rank) {
      before.version[rank] = engine(rank).block().version;
      before.update = std::max(before.update, engine(rank).update());
    }
    return before;
  }

  /// Of the interrupted update, once all who live have settled.
  void expect_truth(const Before& before, Left left) {
    for (int rank = 0; rank < kEngineRanks; ++rank) {
      if (!lives(rank)) continue;
      // One whose engine's first rank the job has not asked any more may find out with the next update.
      ASSERT_TRUE(within(kPatience, [&] { return engine(rank).at_rest() || is_forgotten(rank); }))
          << "an engine waits for ever\n"
          << describe_all();
    }
    if (GetParam() != Victim::kTrainer) {
      ASSERT_TRUE(within(kPatience, [&] { return trainer().state() == WEIGHTCAST_OFFERS; }))
          << describe_all();
    }
    for (int rank = 0; rank < kEngineRanks; ++rank) {
      if (!lives(rank)) continue;
      const bool serves = engine(rank).state() == WEIGHTCAST_SERVING || is_forgotten(rank);
      if (!is_forgotten(rank)) expect_true_memory(rank);
      const std::int64_t version = engine(rank).block().version;
      const bool old = serves && version == before.version[rank];
      const bool brought = serves && version == before.offered;
      EXPECT_TRUE(!serves || old || brought) << describe_all();
      // The commit's record says whether the version is everybody's.
      EXPECT_EQ(brought, is_recorded(before.update + 1)) << describe_all();
      const bool as_expected[] = {old, brought, !brought, true};
      EXPECT_TRUE(as_expected[static_cast<int>(left)]) << describe_all();
    }
  }

  bool is_forgotten(int rank) const {
    const Watched& first = engine(rank - rank % kTp);
    return engine(rank).state() == WEIGHTCAST_ASKED && first.at_rest() &&
           first.update() < engine(rank).update();
  }

  bool is_recorded(std::uint64_t update) const {
    std::ifstream file(folder_ + "/commit-" + std::to_string(update) + ".json");
    return file.get() == '{';
  }

  void start_the_dead_anew(const Before& before) {
    if (GetParam() == Victim::kEngineRank) {
      bury_engine(dead_replica_);
      start_engine(dead_replica_);
      dead_replica_ = -1;
    }
    if (GetParam() == Victim::kTrainer) start_trainer(before.offered + 1, 1'000'000);
  }

  /// What follows a kill.
  void see_it_through(std::unique_ptr<Process>& job, const Before& before, Left left) {
    ++kills_;
    let_go_on(job);
    if (HasFatalFailure()) return;
    expect_truth(before, left);
    if (HasFatalFailure()) return;
    start_the_dead_anew(before);
    expect_a_good_update();
  }

  static bool is_stopped(pid_t process) {
    std::ifstream file("/proc/" + std::to_string(process) + "/stat");
    std::string text;
    std::getline(file, text);
    const std::size_t close = text.rfind(')');
    return close != std::string::npos && text.compare(close + 1, 2, " T") == 0;
  }

  std::mt19937 random_{17};
  std::vector<pid_t> stopped_;
  int dead_replica_ = -1;
  int kills_ = 0;
};

TEST_P(LiveKills, LeaveWhatIsTrue) {
  constexpr int kAtRandom = 2;
  for (int round = 0; round < rounds(); ++round) {
    for (const Moment& moment : kMoments) {
      const auto rank = static_cast<int>(random_() % kEngineRanks);
      SCOPED_TRACE(std::string(moment.name) + " of rank " + std::to_string(rank));
      const Before seen = before();
      std::unique_ptr<Process> job = reach(moment, rank);
      ASSERT_TRUE(job) << "that state does not come\n" << describe_all();
      if (GetParam() == Victim::kEngineRank) dead_replica_ = rank / kTp;
      kill_victim(job, rank);
      see_it_through(job, seen, left_by(moment, GetParam()));
      if (HasFatalFailure()) return;
    }
    // From the start of the ranks to the end of an update.
    std::uniform_int_distribution<int> delay(100, 1200);
    for (int i = 0; i < kAtRandom; ++i) {
      const auto rank = static_cast<int>(random_() % kEngineRanks);
      const Before seen = before();
      auto job = std::make_unique<Process>(sync_command());
      std::this_thread::sleep_for(std::chrono::milliseconds(delay(random_)));
      if (GetParam() == Victim::kEngineRank) dead_replica_ = rank / kTp;
      kill_victim(job, rank);
      see_it_through(job, seen, Left::kEither);
      if (HasFatalFailure()) return;
    }
  }
  std::cout << kills_ << " kills\n";
  end_engines();
}

INSTANTIATE_TEST_SUITE_P(Of, LiveKills,
                         ::testing::Values(Victim::kJobRank, Victim::kJob, Victim::kTrainer,
                                           Victim::kEngineRank),
                         name_of);

}  // namespace

}  // namespace weightcast::engine
