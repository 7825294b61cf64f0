// Servers that outlive their trainers and engines, and the other way round.

#include <sys/mman.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "serve/server.hpp"
#include "support/files.hpp"

namespace weightcast::test_support {

namespace {

using namespace std::chrono_literals;

TEST_F(LiveServers, EnginesAndTrainersComeBack) {
  const auto server = serve();
  const std::vector<pid_t> ranks = server->children();
  ASSERT_NO_FATAL_FAILURE(expect_update(1));
  model_.stop_engine(1);
  model_.start_engine(1);
  ASSERT_NO_FATAL_FAILURE(expect_update(2));
  model_.stop_trainer(0);
  model_.start_trainer(0);
  model_.stop_engine(3);
  model_.start_engine(3);
  ASSERT_NO_FATAL_FAILURE(expect_update(3));
  EXPECT_EQ(server->children(), ranks);
}

TEST_F(LiveServers, WhoComesBackIsMappedOnce) {
  const auto server = serve();
  ASSERT_NO_FATAL_FAILURE(expect_update(1));
  constexpr int kRestarts = 3;
  for (int version = 2; version < 2 + kRestarts; ++version) {
    model_.stop_engine(1);
    std::this_thread::sleep_for(700ms);  // in which the server looks and lets go of the memory
    model_.start_engine(1);
    ASSERT_NO_FATAL_FAILURE(expect_update(version));
  }
  server->send_to_children(SIGUSR1);
  const std::string said = server->wait().out;
  int heads = 0;
  for (std::size_t at = said.find("# limits"); at != said.npos; at = said.find("# limits", at + 1)) ++heads;
  EXPECT_EQ(heads, 1 + kRestarts) << said;
}

TEST_F(LiveServers, WhoIsGoneIsAFailedUpdate) {
  const auto server = serve();
  model_.offer(1);
  const std::string memory = model_.memory_of_engine(2);
  model_.stop_engine(2);
  // Its memory is let go without a request.
  const auto is_mapped = [&] {
    const std::vector<pid_t> ranks = server->children();
    return std::any_of(ranks.begin(), ranks.end(), [&](pid_t rank) {
      return get_file("/proc/" + std::to_string(rank) + "/maps").find(memory) != std::string::npos;
    });
  };
  const auto give_up = std::chrono::steady_clock::now() + 60s;
  while (is_mapped() && std::chrono::steady_clock::now() < give_up) std::this_thread::sleep_for(10ms);
  EXPECT_FALSE(is_mapped());
  expect_refused(trigger(), 74, "engine-2.json");
  model_.start_engine(2);
  ASSERT_NO_FATAL_FAILURE(expect_update(1));
}

TEST_F(LiveServers, MemoryThatIsCutFailsUpdatesUntilItIsPublishedAnew) {
  const auto server = serve();
  const std::vector<pid_t> ranks = server->children();
  ASSERT_NO_FATAL_FAILURE(expect_update(1));
  const auto expect_shrunk = [&](const std::string& memory, const std::string& manifest) {
    std::filesystem::resize_file(memory, 4096);
    const Outcome outcome = trigger();
    expect_refused(outcome, 74, "has shrunk");
    EXPECT_NE(outcome.err.find(manifest), std::string::npos) << describe(outcome);
    EXPECT_NE(outcome.err.find("rank "), std::string::npos) << describe(outcome);
  };
  model_.offer(2);
  expect_shrunk(model_.memory_of_trainer(1), "trainer-1.json");
  model_.stop_trainer(1);
  model_.start_trainer(1);
  ASSERT_NO_FATAL_FAILURE(expect_update(2));
  model_.offer(3);
  expect_shrunk(model_.memory_of_engine(2), "engine-2.json");
  // It was noticed before anything was written.
  const Outcome inspected = run({{WEIGHTCAST_BINARY, "inspect", "live:" + folder_}, {}});
  for (int engine = 0; engine < LiveModel::kEngines; ++engine) {
    const std::string serves = "engine " + std::to_string(engine) + ": serves version 2 ";
    EXPECT_NE(inspected.out.find(serves), std::string::npos) << describe(inspected);
  }
  expect_refused(trigger(), 74, "has shrunk");
  model_.stop_engine(2);
  model_.start_engine(2);
  ASSERT_NO_FATAL_FAILURE(expect_update(3));
  EXPECT_EQ(server->children(), ranks);
}

TEST_F(LiveServers, OffersBringBackWhatHadGone) {
  const auto server = serve({"--on-offer"});
  model_.offer(1);
  ASSERT_TRUE(model_.settle());
  model_.stop_engine(0);
  model_.offer(2);
  std::this_thread::sleep_for(500ms);
  model_.start_engine(0);
  ASSERT_TRUE(model_.settle());
  EXPECT_EQ(model_.difference(2), "");
}

TEST_F(LiveServers, ATrainerThatIsKilledComesBack) {
  model_.stop_trainer(1);
  const CommandLine trainer{
      {WEIGHTCAST_LIVE_TRAINER, "--folder", folder_, "--rank", "1", "--ranks", "2", "--checkpoint",
       model_of_step(0), "--checkpoint", model_of_step(181), "--patience", "100", "--versions", "3"},
      {}};
  const auto start = [&] {
    auto process = std::make_unique<Process>(trainer);
    while (!std::filesystem::exists(folder_ + "/trainer-1.json")) std::this_thread::sleep_for(10ms);
    return process;
  };
  auto other = start();
  const auto server = serve();
  model_.offer(0, 1);
  const Outcome outcome = trigger();
  EXPECT_EQ(outcome.exit_code, 0) << describe(outcome);
  EXPECT_TRUE(other->wait_for_output("offered 1 0"));
  other->send(SIGKILL);
  static_cast<void>(other->wait());
  expect_refused(trigger(), 74, "trainer-1.json");
  std::filesystem::remove(folder_ + "/trainer-1.json");
  other = start();
  const Outcome again = trigger({"--weight-version", "1"});
  EXPECT_EQ(again.exit_code, 0) << describe(again);
}

TEST_F(LiveServers, WhatEnginesHaveNeedsNoTrainer) {
  const auto server = serve();
  ASSERT_NO_FATAL_FAILURE(expect_update(1));
  // Directly behind the answer, be the engines still about to serve it.
  for (int version = 2; version <= 4; ++version) {
    model_.offer(version);
    ASSERT_EQ(trigger().exit_code, 0);
    model_.offer(version + 10);
    const Outcome there = trigger({"--weight-version", std::to_string(version)});
    EXPECT_EQ(there.exit_code, 0) << describe(there);
    EXPECT_NE(there.err.find("there already"), std::string::npos) << describe(there);
  }
  model_.stop_trainer(0);
  const auto expect_there = [&] {
    const Outcome there = trigger({"--weight-version", "4"});
    EXPECT_EQ(there.exit_code, 0) << describe(there);
  };
  expect_there();
  // And when the server has seen that it is gone.
  expect_refused(trigger(), 74, "trainer-0.json");
  expect_there();
  expect_refused(trigger({"--weight-version", "5"}), 74, "trainer-0.json");
  model_.stop_engine(2);
  expect_refused(trigger({"--weight-version", "4"}), 74, ".json");
  model_.start_engine(2, 4);
  expect_there();
  model_.start_trainer(0);
  ASSERT_NO_FATAL_FAILURE(expect_update(21));
}

TEST_F(LiveServers, OneThatNobodyFindsEnds) {
  const auto server = serve();
  const std::string moved = dir_ / "moved";
  std::filesystem::rename(folder_, moved);
  expect_refused(server->wait(), 74, "nobody finds this server any more");
  EXPECT_TRUE(std::filesystem::exists(moved + "/server.json"));
  std::filesystem::rename(moved, folder_);
}

TEST_F(LiveServers, AnotherServersFileStays) {
  const auto server = serve();
  const std::string own = get_file(folder_ + "/server.json");
  std::filesystem::remove(folder_ + "/server.json");
  put_file(folder_ + "/server.json", "another's");
  expect_refused(server->wait(), 74, "was removed or replaced");
  EXPECT_EQ(get_file(folder_ + "/server.json"), "another's");
}

TEST_F(LiveServers, AFileOfADeadServerGoesBeforeTheNextOneIsReady) {
  put_file(folder_ + "/server.json", "a dead server's");
  model_.stop_engine(0);
  expect_refused(try_to_serve(), 74, "engine-0.json");
  EXPECT_FALSE(has_server_file());
}

TEST_F(LiveServers, OneThatIsToldToWaitsForWhoHasNotPublished) {
  model_.stop_trainer(1);
  const CommandLine trainer{{WEIGHTCAST_LIVE_TRAINER, "--folder", folder_, "--rank", "1", "--ranks", "2",
                             "--checkpoint", model_of_step(0), "--versions", "1"},
                            {}};
  {
    Process killed(trainer);
    while (!std::filesystem::exists(folder_ + "/trainer-1.json")) std::this_thread::sleep_for(10ms);
    killed.send(SIGKILL);
    static_cast<void>(killed.wait());
  }
  model_.stop_engine(2);
  const auto control = nlohmann::json::parse(get_file(folder_ + "/trainer-1.json")).at("control");
  for (int look = 0; look < 2; ++look) {
    const Outcome late = run(serve_command({"--wait", "1"}));
    expect_refused(late, 76, "--wait 1: not there yet: ");
    EXPECT_NE(late.err.find("trainer-1.json (its process is dead)"), std::string::npos) << describe(late);
    EXPECT_NE(late.err.find("engine-2.json"), std::string::npos) << describe(late);
    EXPECT_EQ(late.err.find("engine-1.json"), std::string::npos) << describe(late);
    // As the next publication of this user does, which may be another test's.
    ::shm_unlink(control.get<std::string>().c_str());
  }
  Process server(serve_command({"--wait", "200"}));
  std::filesystem::remove(folder_ + "/trainer-1.json");
  model_.start_trainer(1);
  EXPECT_FALSE(has_server_file());
  model_.start_engine(2);
  while (!has_server_file()) {
    ASSERT_TRUE(server.running()) << describe(server.wait());
    std::this_thread::sleep_for(10ms);
  }
  ASSERT_NO_FATAL_FAILURE(expect_update(1));
}

TEST_F(LiveServers, ADeadServerIsReplaced) {
  std::string socket_of_dead;
  {
    const auto server = serve();
    ASSERT_NO_FATAL_FAILURE(expect_update(1));
    model_.hold(true);
    model_.offer(2);
    Process waiting(trigger_command());
    ASSERT_TRUE(wait_until_asked());
    socket_of_dead = socket();
    for (const pid_t rank : server->children()) ::kill(rank, SIGKILL);
    server->send(SIGKILL);
    static_cast<void>(server->wait());
    expect_refused(waiting.wait(), 74,
                   "has ended before its answer, and its log says why; start the server again");
  }
  EXPECT_TRUE(has_server_file());
  expect_refused(trigger(), 74, "nobody listens");
  model_.hold(false);
  EXPECT_FALSE(model_.settle());
  model_.offer(2);
  const auto server = serve();
  EXPECT_NE(socket(), socket_of_dead);
  EXPECT_FALSE(std::filesystem::exists(std::filesystem::path(socket_of_dead).parent_path()));
  const Outcome outcome = trigger();
  EXPECT_EQ(outcome.exit_code, 0) << describe(outcome);
  EXPECT_EQ(model_.difference(2), "");
}

}  // namespace

}  // namespace weightcast::test_support
