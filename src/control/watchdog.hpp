#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace weightcast {

/// The last resort for a process that hangs where it cannot look at a clock: in a system call, or in MPI
/// waiting for a rank that is no more. A thread prints one error line and ends the process with exit code 76.
/// Of the processes of a job that hang together not all need to speak.
class Watchdog {
 public:
  /// Watches the phase `name` (a literal) for `limit` from now. `speaks`: whether this process prints a line.
  Watchdog(const char* name, std::chrono::seconds limit, bool speaks);
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  /// From now on watches another phase.
  void watch(const char* name, std::chrono::seconds limit, bool speaks);

  /// The same for a rank of a job; the first ranks are ended one behind the other, so that
  /// the lowest that hangs speaks first.
  void watch_rank(int rank, const char* name, std::chrono::seconds limit);

 private:
  using Clock = std::chrono::steady_clock;
  void run(const std::stop_token& stop);

  std::mutex mutex_;
  std::condition_variable_any changed_;
  const char* name_;
  std::chrono::seconds limit_;
  bool speaks_;
  Clock::time_point deadline_;
  std::jthread thread_;  // last: it ends before what it uses
};

}  // namespace weightcast
