#include "serve/server.hpp"

#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <thread>

#include "support/files.hpp"

namespace weightcast::test_support {

namespace {

using namespace std::chrono_literals;

}  // namespace

CommandLine LiveServers::serve_command(const Words& more) const {
  Words words{WEIGHTCAST_BINARY, "serve",
              "--source",        "live:" + folder_,
              "--sink",          "live:" + folder_,
              "--model",         model_of_step(0),
              "--trainers",      "2",
              "--inference",     "tp=2,ep=2,replicas=2",
              "--bucket-size",   "64KiB",
              "--timeout",       "120"};
  words.insert(words.end(), more.begin(), more.end());
  CommandLine command = mpirun(2 + LiveModel::kEngines, words);
  command.timeout = 240s;
  return command;
}

std::unique_ptr<Process> LiveServers::serve(const Words& more) const {
  return start(serve_command(more));
}

std::unique_ptr<Process> LiveServers::start(const CommandLine& command) const {
  // A file that a dead server has left does not count.
  const std::string before = has_server_file() ? get_file(folder_ + "/server.json") : "";
  auto server = std::make_unique<Process>(command);
  while (!has_server_file() || get_file(folder_ + "/server.json") == before) {
    if (!server->running()) throw std::runtime_error(describe(server->wait()));
    std::this_thread::sleep_for(10ms);
  }
  return server;
}

CommandLine LiveServers::trigger_command(const Words& more) const {
  Words words{WEIGHTCAST_BINARY, "trigger", folder_};
  words.insert(words.end(), more.begin(), more.end());
  CommandLine command{words, {}};
  command.timeout = 120s;
  return command;
}

void LiveServers::expect_update(std::int64_t version) {
  model_.offer(version);
  const Outcome outcome = trigger();
  ASSERT_EQ(outcome.exit_code, 0) << describe(outcome);
  EXPECT_NE(outcome.out.find(" " + std::to_string(version) + " "), std::string::npos) << describe(outcome);
  EXPECT_NE(outcome.out.find(" yes\n"), std::string::npos) << describe(outcome);
  EXPECT_TRUE(model_.settle());
  EXPECT_EQ(model_.difference(version), "");
}

bool LiveServers::wait_until_asked() const {
  const auto give_up = std::chrono::steady_clock::now() + 60s;
  for (int engine = 0; engine < LiveModel::kEngines; ++engine) {
    while (!model_.is_asked(engine)) {
      if (std::chrono::steady_clock::now() > give_up) return false;
      std::this_thread::sleep_for(1ms);
    }
  }
  return true;
}

bool LiveServers::has_server_file() const {
  return std::filesystem::exists(folder_ + "/server.json");
}

std::string LiveServers::socket() const {
  return nlohmann::json::parse(get_file(folder_ + "/server.json")).at("socket").get<std::string>();
}

void LiveServers::expect_no_trace() const {
  EXPECT_FALSE(has_server_file());
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
    EXPECT_EQ(entry.path().filename().string().find("server"), std::string::npos) << entry.path();
  }
}

void expect_refused(const Outcome& outcome, int code, const std::string& says) {
  EXPECT_EQ(outcome.exit_code, code) << describe(outcome);
  EXPECT_EQ(error_lines(outcome.err).size(), 1) << describe(outcome);
  EXPECT_NE(outcome.err.find(says), std::string::npos) << describe(outcome);
}

}  // namespace weightcast::test_support
