// How servers end.

#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <random>
#include <thread>

#include "serve/server.hpp"

namespace weightcast::test_support {

namespace {

/// A folder that is gone with its socket.
std::string folder_of(const std::string& socket) {
  return std::filesystem::path(socket).parent_path();
}

TEST_F(LiveServers, SignalsEndOneThatWaits) {
  for (const int signal : {SIGUSR1, SIGTERM, SIGHUP}) {
    SCOPED_TRACE(signal);
    const auto server = serve();
    const std::string folder = folder_of(socket());
    server->send_to_children(signal);
    // A rank may still be at the end of its start when the server's file is there.
    expect_refused(server->wait(), 75, "stopped by");
    expect_no_trace();
    EXPECT_FALSE(std::filesystem::exists(folder));
  }
}

TEST_F(LiveServers, ASignalToOneRankEndsAll) {
  const auto server = serve();
  Process waiting(trigger_command());
  // It waits when another one would have to, too.
  while (trigger({"--no-queue", "--timeout", "1"}).exit_code != 74) ASSERT_TRUE(waiting.running());
  ::kill(server->children().back(), SIGTERM);
  expect_refused(server->wait(), 75, "stopped by SIGTERM");
  expect_refused(waiting.wait(), 75, "stopped by SIGTERM");
  expect_no_trace();
}

TEST_F(LiveServers, ASoftSignalLetsTheUpdateEnd) {
  const auto server = serve();
  model_.hold(true);
  model_.offer(1);
  Process asking(trigger_command());
  ASSERT_TRUE(wait_until_asked());
  server->send_to_children(SIGUSR1);
  model_.hold(false);
  const Outcome outcome = asking.wait();
  EXPECT_EQ(outcome.exit_code, 0) << describe(outcome);
  expect_refused(server->wait(), 75, "1 updates are done");
  EXPECT_TRUE(model_.settle());
  EXPECT_EQ(model_.difference(1), "");
  expect_no_trace();
}

TEST_F(LiveServers, AHardSignalEndsTheWaitForAnswers) {
  const auto server = serve();
  model_.hold(true);
  model_.offer(1);
  Process asking(trigger_command());
  ASSERT_TRUE(wait_until_asked());
  server->send_to_children(SIGTERM);
  expect_refused(asking.wait(), 75, "nothing was written");
  const Outcome outcome = server->wait();
  expect_refused(outcome, 75, "nothing was written");
  expect_no_trace();
  // Nobody waits for the dead.
  for (int engine = 0; engine < LiveModel::kEngines; ++engine) EXPECT_FALSE(model_.is_asked(engine));
  EXPECT_EQ(model_.difference(0), "");
}

TEST_F(LiveServers, ATriggerThatIsStoppedSaysThatTheUpdateGoesOn) {
  const auto server = serve();
  model_.hold(true);
  model_.offer(1);
  Process asking(trigger_command());
  ASSERT_TRUE(wait_until_asked());
  // As somebody's own and a launcher's.
  asking.send(SIGINT);
  asking.send(SIGINT);
  expect_refused(asking.wait(), 75, "an update that has begun goes on");
  model_.hold(false);
  EXPECT_TRUE(model_.settle());
  EXPECT_EQ(model_.difference(1), "");
}

TEST_F(LiveServers, SignalsAmidUpdatesLeaveWholeVersions) {
  std::mt19937 random(5);
  std::uniform_int_distribution<int> delay(0, 60);
  std::int64_t version = 0;
  for (const int signal : {SIGTERM, SIGUSR1, SIGTERM, SIGTERM, SIGINT, SIGTERM}) {
    SCOPED_TRACE(version);
    const auto server = serve({"--on-offer"});
    std::jthread training([&](const std::stop_token& stop) {
      while (!stop.stop_requested()) {
        model_.offer(++version);
        model_.settle(1);
      }
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(200 + delay(random)));
    server->send_to_children(signal);
    const Outcome outcome = server->wait();
    EXPECT_EQ(outcome.exit_code, 75) << describe(outcome);
    training = {};
    expect_no_trace();
    // An engine may yet have to see that it has been written.
    std::int64_t served = 0;
    for (int engine = 0; engine < LiveModel::kEngines; ++engine)
      served = std::max(served, model_.version_of_engine(engine));
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    for (int engine = 0; engine < LiveModel::kEngines; ++engine) {
      while (model_.version_of_engine(engine) != served && std::chrono::steady_clock::now() < give_up)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      EXPECT_EQ(model_.version_of_engine(engine), served);
      EXPECT_FALSE(model_.is_asked(engine));
    }
    EXPECT_EQ(model_.difference(served), "");
  }
}

}  // namespace

}  // namespace weightcast::test_support
