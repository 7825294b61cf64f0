// What a server does for whoever asks it for updates.

#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <set>
#include <sstream>
#include <thread>

#include "serve/server.hpp"
#include "support/files.hpp"
#include "support/other_user.hpp"
#include "sys/host.hpp"

namespace weightcast::test_support {

namespace {

using namespace std::chrono_literals;

/// Rows of the update table.
int rows_in(const std::string& out) {
  std::istringstream lines(out);
  int rows = 0;
  for (std::string line; std::getline(lines, line);) rows += line.ends_with(" yes") && line[0] != '#' ? 1 : 0;
  return rows;
}

TEST_F(LiveServers, OneServerBringsManyVersions) {
  const auto server = serve({"--json", dir_ / "report.json"});
  const std::vector<pid_t> ranks = server->children();
  constexpr int kUpdates = 8;
  for (int version = 1; version <= kUpdates; ++version) ASSERT_NO_FATAL_FAILURE(expect_update(version));
  const Outcome there = trigger({"--weight-version", "8"});
  EXPECT_EQ(there.exit_code, 0) << describe(there);
  EXPECT_NE(there.err.find("version 8 is there already"), std::string::npos) << describe(there);
  // A trainer that offers it once more hears that it has been read.
  model_.offer(8);
  EXPECT_EQ(trigger({"--weight-version", "8"}).exit_code, 0);
  EXPECT_TRUE(model_.settle());
  model_.offer(7);
  expect_refused(trigger(), 64, "start the job, or the server, with --allow-older");
  EXPECT_EQ(server->children(), ranks);
  server->send_to_children(SIGUSR1);
  const Outcome outcome = server->wait();
  EXPECT_EQ(outcome.exit_code, 75) << describe(outcome);
  EXPECT_EQ(rows_in(outcome.out), kUpdates);
}

TEST_F(LiveServers, StagingIsTakenForEachUpdate) {
  const auto server = serve({"--release-staging"});
  // Threads pack and unpack from it.
  const auto threads = [&] {
    std::size_t count = 0;
    for (const pid_t rank : server->children()) {
      const std::filesystem::directory_iterator all("/proc/" + std::to_string(rank) + "/task");
      count += static_cast<std::size_t>(std::distance(begin(all), end(all)));
    }
    return count;
  };
  const std::size_t idle = threads();
  for (int version = 1; version <= 3; ++version) {
    ASSERT_NO_FATAL_FAILURE(expect_update(version));
    EXPECT_EQ(trigger({"--weight-version", std::to_string(version)}).exit_code, 0);
  }
  model_.hold(true);
  model_.offer(4);
  Process asking(trigger_command());
  ASSERT_TRUE(wait_until_asked());
  EXPECT_GT(threads(), idle);
  model_.hold(false);
  EXPECT_EQ(asking.wait().exit_code, 0);
  EXPECT_TRUE(model_.settle());
  EXPECT_EQ(model_.difference(4), "");
  // A trainer or an engine that comes back is served as ever.
  model_.stop_engine(1);
  model_.start_engine(1);
  ASSERT_NO_FATAL_FAILURE(expect_update(5));
}

TEST_F(LiveServers, RequestsWaitForTheirTurnOrAreRefused) {
  const auto server = serve();
  model_.hold(true);
  model_.offer(1);
  Process first(trigger_command());
  ASSERT_TRUE(wait_until_asked());
  std::vector<std::unique_ptr<Process>> more;
  for (int i = 0; i < 4; ++i)
    more.push_back(std::make_unique<Process>(trigger_command({"--weight-version", "1"})));
  expect_refused(trigger({"--no-queue"}), 74, "another update is under way");
  // One that goes away is forgotten.
  more.back()->send(SIGKILL);
  EXPECT_EQ(more.back()->wait().signal, SIGKILL);
  more.pop_back();
  model_.hold(false);
  EXPECT_EQ(first.wait().exit_code, 0);
  for (const auto& one : more) {
    const Outcome outcome = one->wait();
    EXPECT_EQ(outcome.exit_code, 0) << describe(outcome);
    EXPECT_NE(outcome.err.find("there already"), std::string::npos) << describe(outcome);
  }
  EXPECT_TRUE(model_.settle());
  // Which of several gets the update is open, all get the version.
  model_.offer(2);
  more.clear();
  for (int i = 0; i < 4; ++i)
    more.push_back(std::make_unique<Process>(trigger_command({"--weight-version", "2"})));
  int rows = 0;
  for (const auto& one : more) {
    const Outcome outcome = one->wait();
    EXPECT_EQ(outcome.exit_code, 0) << describe(outcome);
    rows += rows_in(outcome.out);
  }
  EXPECT_EQ(rows, 1);
  EXPECT_EQ(model_.difference(2), "");
}

TEST_F(LiveServers, AnotherVersionThanWantedIsRefused) {
  const auto server = serve();
  model_.offer(1);
  expect_refused(trigger({"--weight-version", "5"}), 64, "the trainers offer version 1");
  ASSERT_NO_FATAL_FAILURE(expect_update(1));
  // Nothing is offered: who asked waits, and is told when that is not what it wants.
  Process waiting(trigger_command({"--weight-version", "3"}));
  std::this_thread::sleep_for(100ms);
  model_.offer(2);
  expect_refused(waiting.wait(), 64, "the trainers offer version 2");
  EXPECT_EQ(trigger({"--timeout", "1", "--weight-version", "2"}).exit_code, 0);
  expect_refused(trigger({"--timeout", "1"}), 76, "no answer within 1 s");
}

TEST_F(LiveServers, AFailedUpdateIsNotTheEnd) {
  const auto server = serve();
  model_.decline("the engine sleeps");
  model_.offer(1);
  expect_refused(trigger(), 74, "the engine sleeps");
  model_.accept();
  ASSERT_NO_FATAL_FAILURE(expect_update(1));
}

TEST_F(LiveServers, OffersAreEnoughWhereThatIsAskedFor) {
  const auto server = serve({"--on-offer"});
  for (int version = 1; version <= 6; ++version) {
    model_.offer(version);
    ASSERT_TRUE(model_.settle());
    ASSERT_EQ(model_.difference(version), "");
  }
  EXPECT_EQ(trigger({"--weight-version", "6"}).exit_code, 0);
  // What fails is tried again, and said once.
  model_.decline("the engine sleeps");
  model_.offer(7);
  EXPECT_FALSE(model_.settle(4));
  model_.accept();
  model_.offer(7);
  EXPECT_TRUE(model_.settle());
  EXPECT_EQ(model_.difference(7), "");
  // One trainer alone is not enough.
  model_.offer(0, 8);
  expect_refused(trigger({"--timeout", "1"}), 76, "no answer within 1 s");
  model_.offer(1, 8);
  EXPECT_TRUE(model_.settle());
  server->send_to_children(SIGUSR1);
  const Outcome outcome = server->wait();
  const std::vector<std::string> lines = error_lines(outcome.err);
  EXPECT_EQ(std::set<std::string>(lines.begin(), lines.end()).size(), lines.size()) << describe(outcome);
}

TEST_F(LiveServers, AJobWaitsForOneVersionOfAllTrainers) {
  const auto sync = [&](const char* timeout) {
    return mpirun(
        2 + LiveModel::kEngines,
        {WEIGHTCAST_BINARY, "sync", "--source", "live:" + folder_, "--sink", "live:" + folder_, "--model",
         model_of_step(0), "--trainers", "2", "--inference", "tp=2,ep=2,replicas=2", "--timeout", timeout});
  };
  model_.offer(0, 8);
  model_.offer(1, 7);
  expect_refused(run(sync("8")), 76,
                 "has not offered version 8 as another trainer has (offers version 7) within 2 s");
  Process job(sync("100000"));
  ASSERT_TRUE(job.wait_for_output("# version"));  // from then on it waits for trainers
  job.send_to_children(SIGTERM);
  expect_refused(job.wait(), 75, "stopped by SIGTERM");
  model_.offer(1, 8);
  EXPECT_EQ(run(sync("100")).exit_code, 0);
  EXPECT_EQ(model_.difference(8), "");
}

TEST_F(LiveServers, FilesAreASourceToo) {
  const std::string source = dir_ / "source";
  std::filesystem::create_directory_symlink(model_of_step(181), source);
  const auto server =
      start(mpirun(1 + LiveModel::kEngines, {WEIGHTCAST_BINARY, "serve", "--source", source, "--sink",
                                             "live:" + folder_, "--inference", "tp=2,ep=2,replicas=2"}));
  Outcome outcome = trigger({"--weight-version", "7"});
  EXPECT_EQ(outcome.exit_code, 0) << describe(outcome);
  EXPECT_EQ(model_.difference(7), "");
  // It is looked at anew each time.
  std::filesystem::remove(source);
  std::filesystem::create_directory_symlink(model_of_step(0), source);
  outcome = trigger({"--weight-version", "8"});
  EXPECT_EQ(outcome.exit_code, 0) << describe(outcome);
  EXPECT_EQ(model_.difference(8), "");
  std::filesystem::remove(source);
  EXPECT_EQ(trigger({"--weight-version", "9"}).exit_code, 74);
  EXPECT_EQ(trigger({"--weight-version", "8"}).exit_code, 0);
}

TEST_F(LiveServers, ShardFilesAreASinkToo) {
  const std::string shards = dir_ / "shards";
  const auto command = [&](const char* name) {
    // A server goes on in the other format.
    const std::string sink = (name == std::string("sync") ? "hdf5:" : "safetensors:") + shards;
    return mpirun(3, {WEIGHTCAST_BINARY, name, "--source", "live:" + folder_, "--sink", sink, "--model",
                      model_of_step(0), "--trainers", "2", "--inference", "tp=1"});
  };
  const auto holds = [&](int step, const std::string& version) {
    return run({{WEIGHTCAST_BINARY, "verify", shards, "--source", model_of_step(step), "--weight-version",
                 version},
                {}})
               .exit_code == 0;
  };
  model_.offer(1);
  Outcome outcome = run(command("sync"));
  EXPECT_EQ(outcome.exit_code, 0) << describe(outcome);
  EXPECT_TRUE(model_.settle());
  EXPECT_TRUE(holds(181, "1"));
  const auto server = start(command("serve"));
  for (const int version : {2, 3}) {
    model_.offer(version);
    outcome = trigger({"--weight-version", std::to_string(version)});
    EXPECT_EQ(outcome.exit_code, 0) << describe(outcome);
    EXPECT_TRUE(model_.settle());
    EXPECT_TRUE(holds(version == 2 ? 0 : 181, std::to_string(version)));
  }
}

TEST_F(LiveServers, ASecondOneIsRefused) {
  const auto server = serve();
  const auto inspected = [&] { return run({{WEIGHTCAST_BINARY, "inspect", "live:" + folder_}, {}}).out; };
  EXPECT_NE(inspected().find("takes requests of weightcast trigger " + folder_), std::string::npos)
      << inspected();
  expect_refused(try_to_serve(), 74, "serve on host");
  ASSERT_NO_FATAL_FAILURE(expect_update(1));
}

TEST_F(LiveServers, WhatMakesNoSenseIsRefused) {
  const auto refused = [&](const Words& more, const std::string& says) {
    Words words{WEIGHTCAST_BINARY, "serve", "--inference", "tp=2,ep=2,replicas=2"};
    words.insert(words.end(), more.begin(), more.end());
    expect_refused(run(mpirun(1 + LiveModel::kEngines, words)), 64, says);
  };
  refused({"--source", model_of_step(0)}, "serve is for running processes");
  refused({"--sink", "live:" + folder_}, "--source PATH or live:DIR");
  refused({"--source", model_of_step(0), "--sink", "live:" + folder_, "--on-offer"}, "--on-offer");
  expect_no_trace();
}

TEST_F(LiveServers, WithoutOneThereIsNothingToAsk) {
  expect_refused(trigger(), 74, "weightcast serve");
  const auto server_file = [&](const std::string& host, int user, const std::string& boot = "b",
                               const std::string& socket = "/tmp/none") {
    put_file(folder_ + "/server.json", R"({"weightcast": 1, "host": ")" + host + R"(", "boot_id": ")" + boot +
                                           R"(", "pid": 1, "uid": )" + std::to_string(user) +
                                           R"(, "job": "17", "socket": ")" + socket + R"("})");
  };
  server_file("elsewhere", 0);
  expect_refused(trigger(), 74, "srun --jobid=17 --overlap -w elsewhere weightcast trigger " + folder_);
  server_file(this_host(), static_cast<int>(::getuid()) + 1);
  expect_refused(trigger(), 74, "as that user");
  server_file(this_host(), static_cast<int>(::getuid()));
  expect_refused(trigger(), 74, "has been started anew");
  server_file(this_host(), static_cast<int>(::getuid()), this_boot(), std::string(200, 'x'));
  expect_refused(trigger(), 65, folder_ + "/server.json (process 1): the socket's name is too long");
  put_file(folder_ + "/server.json", "{}");
  expect_refused(trigger(), 65, "server.json");
  EXPECT_EQ(run({{WEIGHTCAST_BINARY, "trigger"}, {}}).exit_code, 64);
  const auto trigger_of = [](const std::string& folder) {
    return run({{WEIGHTCAST_BINARY, "trigger", folder}, {}});
  };
  expect_refused(trigger_of(folder_ + "/none"), 74, "/none: there is no such folder; name the folder");
  expect_refused(trigger_of(folder_ + "/engine-0.json"), 74, "/engine-0.json: is no folder");
  const OtherUser other;
  if (other.is_another()) expect_refused(trigger(), 74, "Permission denied; ask as the user");
}

}  // namespace

}  // namespace weightcast::test_support
