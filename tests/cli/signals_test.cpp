// Jobs that are stopped, and jobs in which a rank hangs or dies.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>

#include "cli/cli.hpp"
#include "cli/slow_disk.hpp"

namespace weightcast::test_support {
namespace {

using namespace std::chrono_literals;

class Signals : public CliTest {
 protected:
  /// More updates than any test waits for: a fast machine does one in a millisecond, and a signal takes its
  /// time through mpirun.
  static constexpr int kUpdates = 400;

  /// Starts a job of three ranks and waits until some updates are done.
  std::unique_ptr<Process> start(const Words& more = {}) const {
    Words words{"sync", "--inference", "tp=2,ep=2", "--sink", "hdf5:" + sink_, "--json", json_};
    for (int i = 0; i < kUpdates; ++i) words = words + Words{"--source", trained(i % 2)};
    auto job = std::make_unique<Process>(slow_disk_job(3, words + more, "/.rank-1.h5.", kSlowUpdate));
    if (!job->wait_for_output("\n        3 "))
      throw std::runtime_error("no updates: " + describe(job->wait()));
    return job;
  }

  /// Compares the shards with the source of the version that they say they have.
  Outcome verify_shards() const {
    const auto version = read_checkpoint(sink_ + "/rank-0.h5").weight_version;
    EXPECT_TRUE(version.has_value());
    return run_plain({"verify", sink_, "--source", trained(static_cast<int>(version.value_or(0) % 2))});
  }

  /// Expects the shards to be all of one version, which is whole, and nothing beside them.
  void expect_whole_shards() const {
    EXPECT_TRUE(done(verify_shards()));
    EXPECT_EQ(folder_contents(sink_).size(), 2);
  }

  /// The same when a rank may have been stopped just when all had agreed to rename and before it did: then
  /// the shards are of two versions, and are refused.
  void expect_whole_or_mixed_shards() const {
    const Outcome outcome = verify_shards();
    if (outcome.exit_code == 0) {
      EXPECT_TRUE(done(outcome));
    } else {
      EXPECT_TRUE(refused(outcome, 65, {sink_, "mixed", "weight_version"}));
    }
  }

  static bool has_hidden_file(const std::string& directory, const std::string& beginning) {
    std::error_code ignored;  // files come and go meanwhile
    std::filesystem::directory_iterator entry(directory, ignored);
    for (const std::filesystem::directory_iterator end; entry != end; entry.increment(ignored)) {
      if (entry->path().filename().string().starts_with(beginning)) return true;
    }
    return false;
  }

  /// Whether the first rank has a file of that name open.
  static bool first_rank_reads(const Process& job, const std::string& name) {
    const auto ranks = job.children();
    if (ranks.size() != 3) return false;
    std::error_code ignored;  // files are opened and closed meanwhile
    std::filesystem::directory_iterator fd("/proc/" + std::to_string(ranks.front()) + "/fd", ignored);
    for (const std::filesystem::directory_iterator end; fd != end; fd.increment(ignored)) {
      if (std::filesystem::read_symlink(fd->path(), ignored).filename() == name) return true;
    }
    return false;
  }

  std::string json_ = dir_ / "report.json";
};

TEST_F(Signals, Usr1StopsBetweenUpdates) {
  const auto job = start();
  job->send_to_children(SIGUSR1);
  const Outcome outcome = job->wait();
  EXPECT_TRUE(refused(outcome, 75, {"SIGUSR1", "of 400 updates are done"}));
  const auto report = read_json(json_);
  EXPECT_EQ(report.at("status"), "stopped");
  const std::size_t updates = report.at("updates").size();
  EXPECT_GT(updates, 3);
  EXPECT_LT(updates, kUpdates);
  EXPECT_TRUE(has(outcome.err, {std::to_string(updates) + " of 400"}));
  // Everything that was begun is done.
  const auto last = report.at("updates").back();
  EXPECT_EQ(last.at("weight_version"), updates - 1);
  EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", last.at("source").get<std::string>(),
                              "--weight-version", std::to_string(updates - 1)})));
  EXPECT_EQ(folder_contents(sink_).size(), 2);
}

TEST_F(Signals, Usr1ToOneRankStopsAll) {
  const auto job = start();
  const auto ranks = job->children();
  ASSERT_EQ(ranks.size(), 3);
  ::kill(ranks.at(2), SIGUSR1);
  EXPECT_TRUE(refused(job->wait(), 75, {"SIGUSR1", "of 400 updates are done"}));
  expect_whole_shards();
}

TEST_F(Signals, WhenAllIsDoneChangeNothing) {
  ASSERT_EQ(::mkfifo(json_.c_str(), 0600), 0);
  Process job(job_command(3, sync_words(trained(0)) + Words{"--json", json_}));
  ASSERT_TRUE(job.wait_for_output("\n        0 "));
  // The report is all that is left to do, and waits for somebody who reads it.
  std::this_thread::sleep_for(1s);
  const auto ranks = job.children();
  ASSERT_EQ(ranks.size(), 3);
  ::kill(ranks.at(1), SIGTERM);
  std::this_thread::sleep_for(200ms);
  const int reader = ::open(json_.c_str(), O_RDONLY | O_NONBLOCK);
  EXPECT_TRUE(done(job.wait()));
  std::string text(1 << 16, '\0');
  text.resize(static_cast<std::size_t>(std::max<ssize_t>(0, ::read(reader, text.data(), text.size()))));
  ::close(reader);
  EXPECT_TRUE(has(text, {"\"status\": \"done\""}));
  expect_whole_shards();
}

TEST_F(Signals, TermToTheRanksStopsAtOnce) {
  const auto job = start();
  for (const pid_t rank : job->children()) ::kill(rank, SIGTERM);
  EXPECT_TRUE(refused(job->wait(), 75, {"stopped by"}));
  expect_whole_shards();
  EXPECT_EQ(read_json(json_).at("status"), "stopped");
}

TEST_F(Signals, TermWhileTheFirstRankIsBusy) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the address sanitizer wants to be loaded first";
#endif
  // The one that would speak for the others reads headers from a slow disk: the lowest of them speaks.
  put_old_shards();
  const auto before = folder_contents(sink_);
  Process job(slow_disk_job(3, sync_words(trained(0)), "model.safetensors", 30s));
  while (!first_rank_reads(job, "model.safetensors")) ASSERT_TRUE(job.running()) << describe(job.wait());
  for (const pid_t rank : job.children()) ::kill(rank, SIGTERM);
  EXPECT_TRUE(refused(job.wait(), 75, {"rank 1 (", "stopped by SIGTERM"}));
  EXPECT_EQ(folder_contents(sink_), before);
}

TEST_F(Signals, ACallThatDoesNotReturnIsNoProtection) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the address sanitizer wants to be loaded first";
#endif
  const Variables slow{{"LD_PRELOAD", WEIGHTCAST_SLOW_DISK},
                       {"SLOW_DISK_FILE", "model.safetensors"},
                       {"SLOW_DISK_MILLISECONDS", "40000"}};
  const std::vector<Words> commands{{"inspect", trained(0)},
                                    {"plan", "--source", trained(0)},
                                    {"convert", "--source", trained(0), "--output", dir_ / "x.h5"}};
  for (const Words& words : commands) {
    for (const auto& [signals, limit] : {std::pair(1, 15s), std::pair(2, 3s)}) {
      Process command(plain_command(words, slow));
      ASSERT_TRUE(command.wait_until_it_catches(SIGTERM)) << describe(command.wait());
      std::this_thread::sleep_for(500ms);
      const auto start = std::chrono::steady_clock::now();
      for (int i = 0; i < signals; ++i) {
        command.send(i == 0 ? SIGTERM : SIGINT);
        std::this_thread::sleep_for(100ms);
      }
      EXPECT_TRUE(refused(command.wait(), 75, {"stopped by", "in the midst of a step; nothing was changed"}));
      EXPECT_LT(std::chrono::steady_clock::now() - start, limit);
    }
  }
  EXPECT_TRUE(std::filesystem::is_empty(std::filesystem::path(dir_ / "")));
}

TEST_F(Signals, NorForTheFirstRank) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the address sanitizer wants to be loaded first";
#endif
  put_old_shards();
  const auto before = folder_contents(sink_);
  Process job(slow_disk_job(3, sync_words(trained(0)), "model.safetensors", 50s));
  while (!first_rank_reads(job, "model.safetensors")) ASSERT_TRUE(job.running()) << describe(job.wait());
  // No other rank has heard of it.
  ::kill(job.children().at(0), SIGTERM);
  EXPECT_TRUE(refused(
      job.wait(), 75,
      {"rank 0 (", "start: stopped by SIGTERM in the midst of a step", "the previous version is untouched"}));
  EXPECT_EQ(folder_contents(sink_), before);
}

TEST_F(Signals, OfAPlainCommandBeforeItsFilesTakeTheirNames) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the address sanitizer wants to be loaded first";
#endif
  const std::string output = dir_ / "output";
  Process convert(plain_command({"convert", "--source", trained(0), "--output", output + "/x.h5"},
                                {{"LD_PRELOAD", WEIGHTCAST_SLOW_DISK},
                                 {"SLOW_DISK_FILE", "/.x.h5."},
                                 {"SLOW_DISK_MILLISECONDS", "1500"}}));
  while (!has_hidden_file(output, ".x.h5.")) ASSERT_TRUE(convert.running()) << describe(convert.wait());
  // All is written, and flushed slowly.
  std::this_thread::sleep_for(500ms);
  convert.send(SIGTERM);
  EXPECT_TRUE(refused(convert.wait(), 75, {"stopped by SIGTERM", "nothing was changed"}));
  EXPECT_FALSE(std::filesystem::exists(output));
}

TEST_F(Signals, StopAPlan) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the address sanitizer wants to be loaded first";
#endif
  for (const int signal : {SIGUSR1, SIGTERM, SIGINT}) {
    Process plan(plain_command({"plan", "--model", trained(0)}, {{"LD_PRELOAD", WEIGHTCAST_SLOW_DISK},
                                                                 {"SLOW_DISK_FILE", "config.json"},
                                                                 {"SLOW_DISK_MILLISECONDS", "700"}}));
    ASSERT_TRUE(plan.wait_until_it_catches(signal)) << describe(plan.wait());
    plan.send(signal);
    EXPECT_TRUE(refused(plan.wait(), 75, {"stopped by SIG", "the plan was not printed"}));
  }
}

TEST_F(Signals, AClosedTerminalStopsWhatDoesNotIgnoreIt) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the address sanitizer wants to be loaded first";
#endif
  for (const bool ignores : {false, true}) {
    CommandLine command =
        plain_command({"plan", "--model", trained(0)}, {{"LD_PRELOAD", WEIGHTCAST_SLOW_DISK},
                                                        {"SLOW_DISK_FILE", "config.json"},
                                                        {"SLOW_DISK_MILLISECONDS", "700"}});
    if (ignores) command.words = Words{"nohup"} + command.words;
    Process plan(command);
    ASSERT_TRUE(plan.wait_until_it_catches(ignores ? SIGTERM : SIGHUP)) << describe(plan.wait());
    plan.send(SIGHUP);
    const Outcome outcome = plan.wait();
    EXPECT_TRUE(ignores ? done(outcome) : refused(outcome, 75, {"stopped by SIGHUP"}));
  }
}

TEST_F(Signals, IntToOneRankStopsAll) {
  const auto job = start();
  ::kill(job->children().at(1), SIGINT);
  EXPECT_TRUE(refused(job->wait(), 75, {"stopped by"}));
  expect_whole_shards();
}

TEST_F(Signals, NeverBetweenTheShardsOfAVersion) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the address sanitizer wants to be loaded first";
#endif
  EXPECT_TRUE(done(run_job(3, sync_words(trained(0)))));
  // The second inference rank is still writing its shard of version 1 when the first, which has done so and
  // waits for it, is told to stop. The trainer sleeps meanwhile: when it wakes, it finds the votes for the
  // new version and whatever the first rank has to say, in any order.
  const Words words = sync_words(trained(1)) + Words{"--weight-version", "1", "--json", json_};
  Process job(slow_disk_job(3, words, "/.rank-1.h5.", 1s));
  while (!has_hidden_file(sink_, ".rank-1.h5.")) {
    ASSERT_TRUE(job.running()) << describe(job.wait());
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  const auto ranks = job.children();
  ASSERT_EQ(ranks.size(), 3);
  ::kill(ranks.at(0), SIGSTOP);
  ::kill(ranks.at(1), SIGINT);
  std::this_thread::sleep_for(std::chrono::milliseconds(1200));
  ::kill(ranks.at(0), SIGCONT);
  EXPECT_TRUE(refused(job.wait(), 75, {"stopped by"}));
  expect_whole_shards();
}

TEST_F(Signals, NobodyRenamesWhenOneHasLostItsFile) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the address sanitizer wants to be loaded first";
#endif
  put_old_shards();
  const auto before = folder_contents(sink_);
  Process job(slow_disk_job(3, sync_words(trained(1)), "/.rank-1.h5.", 1s));
  const auto is_begun = [&] {
    std::error_code ignored;  // files come and go meanwhile
    std::filesystem::directory_iterator entry(sink_, ignored);
    for (const std::filesystem::directory_iterator end; entry != end; entry.increment(ignored)) {
      if (entry->path().extension() == ".partial" &&
          entry->path().filename().string().starts_with(".rank-1.h5.") && entry->file_size(ignored) > 0 &&
          !ignored) {
        return true;
      }
    }
    return false;
  };
  while (!is_begun()) ASSERT_TRUE(job.running()) << describe(job.wait());
  // It is written, and flushed slowly.
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  for (const auto& entry : std::filesystem::directory_iterator(sink_)) {
    if (entry.path().filename().string().starts_with(".rank-1.h5.")) std::filesystem::remove(entry.path());
  }
  EXPECT_TRUE(refused(job.wait(), 74, {"rank 2 (", sink_ + "/rank-1.h5", "removed or replaced"}));
  EXPECT_EQ(folder_contents(sink_), before);
}

TEST_F(Signals, TermToTheLauncher) {
  const auto job = start();
  job->send(SIGTERM);
  const Outcome outcome = job->wait();
  // The exit code is mpirun's own, which may be gone before it has passed the line on.
  EXPECT_NE(outcome.exit_code, 0);
  EXPECT_FALSE(outcome.timed_out);
  EXPECT_LE(error_lines(outcome.err).size(), 1) << describe(outcome);
  expect_whole_shards();
}

TEST_F(Signals, RankThatHangs) {
  const auto job = start({"--timeout", "20"});
  const pid_t rank = job->children().at(2);
  ::kill(rank, SIGSTOP);
  EXPECT_TRUE(refused(job->wait(), 76, {"version", "not done after 20 s", "--timeout"}));
  expect_whole_or_mixed_shards();
  EXPECT_EQ(read_json(json_).at("status"), "timeout");
}

TEST_F(Signals, FirstRankThatHangs) {
  // The one that speaks for the others.
  const auto job = start({"--timeout", "20"});
  ::kill(job->children().at(0), SIGSTOP);
  EXPECT_TRUE(refused(job->wait(), 76, {"version", "not done after 20 s", "--timeout"}));
  expect_whole_or_mixed_shards();
}

TEST_F(Signals, RankThatDies) {
  for (const std::size_t dead : {2, 0}) {
    const auto job = start();
    ::kill(job->children().at(dead), SIGKILL);
    // Nothing is left to agree with; the launcher notices and ends the others, and those see why.
    EXPECT_TRUE(refused(job->wait(), 128 + SIGKILL,
                        {"rank " + std::to_string(dead) + " has died", "update to version"}));
    expect_whole_or_mixed_shards();
  }
}

TEST_F(Signals, SourceThatNeverAnswers) {
  // Opening a pipe that nobody writes to would last for ever.
  put_file(dir_ / "source/config.json", get_file(trained(0) + "/config.json"));
  ASSERT_EQ(::mkfifo((dir_ / "source/model.safetensors").c_str(), 0600), 0);
  put_old_shards();
  const auto before = folder_contents(sink_);
  const Outcome outcome = run_job(3, sync_words(dir_ / "source") + Words{"--timeout", "60"});
  EXPECT_TRUE(refused(outcome, 74, {dir_ / "source/model.safetensors", "no regular file"}));
  EXPECT_EQ(folder_contents(sink_), before);
}

}  // namespace
}  // namespace weightcast::test_support
