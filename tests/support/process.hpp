#pragma once

#include <sys/types.h>

#include <chrono>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "support/temp_dir.hpp"

namespace weightcast::test_support {

/// A command to run, as a shell would be told.
struct CommandLine {
  std::vector<std::string> words;
  std::map<std::string, std::string> environment;  ///< added to this process's own
  std::chrono::seconds timeout{150};               ///< after it the command and its children are killed
};

/// What a command left behind.
struct Outcome {
  int exit_code = -1;  ///< -1 when a signal ended it
  int signal = 0;      ///< the signal that ended it
  bool timed_out = false;
  std::string out;
  std::string err;
};

/// A command that is running. Variables of launchers and of the program itself are not handed on, so that
/// tests mean the same inside a batch job. It has a TMPDIR of its own: two mpiruns that share the folder of
/// their sessions end each other's.
class Process {
 public:
  explicit Process(const CommandLine& command);
  /// Kills what is still running.
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  bool running() { return !ended() && std::chrono::steady_clock::now() < deadline_; }

  /// Waits until stdout contains the text; false when the command ends or the time is over before.
  bool wait_for_output(std::string_view text);

  /// Waits until the command has a handler for the signal; false when it ends, or the time is over, before.
  bool wait_until_it_catches(int signal);

  /// The processes that the command has started and that are alive, in the order of their ids: the ranks of
  /// an mpirun.
  std::vector<pid_t> children() const;

  void send(int signal) const;
  /// To each of children(): not every launcher hands all signals on.
  void send_to_children(int signal) const;

  /// Waits for the end.
  Outcome wait();

 private:
  bool ended();
  void kill_all() const;

  std::chrono::steady_clock::time_point deadline_;
  TempDir scratch_{"/tmp"};  ///< a short path, because names of sockets in it may have 107 characters
  pid_t id_ = -1;
  int out_ = -1;
  int err_ = -1;
  bool ended_ = false;
  int status_ = 0;
};

/// Runs a command to its end.
Outcome run(const CommandLine& command);

/// `mpirun -n RANKS WORDS…`, with what it takes to run as root and with more ranks than cores.
CommandLine mpirun(int ranks, std::vector<std::string> words);

/// The lines of stderr that start with `weightcast: error:`.
std::vector<std::string> error_lines(const std::string& err);

/// Everything that helps to understand a command that ended unexpectedly.
std::string describe(const Outcome& outcome);

}  // namespace weightcast::test_support
