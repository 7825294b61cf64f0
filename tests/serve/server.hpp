#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "serve/live_model.hpp"
#include "support/process.hpp"
#include "support/temp_dir.hpp"

namespace weightcast::test_support {

using Words = std::vector<std::string>;

/// A test with a model that lives and servers for it.
class LiveServers : public ::testing::Test {
 protected:
  /// Starts one, and waits until it takes requests.
  std::unique_ptr<Process> serve(const Words& more = {}) const;
  /// Starts one that ends by itself.
  Outcome try_to_serve() const { return run(serve_command({})); }
  CommandLine serve_command(const Words& more) const;
  /// The same for other words behind `serve` and another number of ranks.
  std::unique_ptr<Process> start(const CommandLine& command) const;

  CommandLine trigger_command(const Words& more = {}) const;
  Outcome trigger(const Words& more = {}) const { return run(trigger_command(more)); }
  /// Offers a version, asks for it, and looks at what the engines have.
  void expect_update(std::int64_t version);

  /// Waits until all engines are asked.
  bool wait_until_asked() const;

  bool has_server_file() const;
  std::string socket() const;
  /// Neither server.json nor its lock.
  void expect_no_trace() const;

  TempDir dir_{"/tmp"};
  std::string folder_ = dir_ / "weights";
  LiveModel model_{folder_, dir_.string()};
};

/// One error line that says so, with that code.
void expect_refused(const Outcome& outcome, int code, const std::string& says);

}  // namespace weightcast::test_support
