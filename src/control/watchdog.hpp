#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

namespace weightcast {

/// The last resort for a process that hangs where it cannot look at a clock: in a system call, or in MPI
/// waiting for a rank that is no more. A thread prints one error line and ends the process with exit code 76.
/// Of the processes of a job that hang together not all need to speak.
class Watchdog {
 public:
  /// As watch_rank().
  Watchdog(const char* name, std::chrono::seconds limit, int rank);
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  /// Watches the phase `name` (a literal) of a rank for `limit` from now. The first ranks are ended one
  /// behind the other, so that the lowest that hangs speaks first; those behind them end without a line.
  void watch_rank(int rank, const char* name, std::chrono::seconds limit);

  /// From here on the process speaks only where `may_speak` says so, once it comes to that; it is called in
  /// the watchdog's thread. Where it decides among `all` ranks, they need not be ended one behind the other.
  /// With nothing it always speaks.
  void share_the_word(std::function<bool()> may_speak, bool all);

 private:
  using Clock = std::chrono::steady_clock;
  void run(const std::stop_token& stop);

  std::mutex mutex_;
  std::condition_variable_any changed_;
  const char* name_;
  std::chrono::seconds limit_;
  int rank_;
  std::function<bool()> may_speak_;
  bool at_once_ = false;  ///< one behind the other is not needed
  Clock::time_point deadline_;
  std::jthread thread_;  // last: it ends before what it uses
};

}  // namespace weightcast
