#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>

namespace weightcast {

/// From here on SIGUSR1 asks to stop after the update in progress, SIGTERM and SIGINT (or a second SIGUSR1)
/// to stop at once, and so does SIGHUP, which a terminal sends that is closed, unless it is ignored already
/// (nohup). Handlers only take note; whoever polls acts on it. Where nobody comes to poll, because a
/// call into a library or the system does not return, a thread ends the process as `set_last_resort` says.
void watch_signals();

/// How a process ends that does not act on a signal to stop at once.
struct LastResort {
  /// Makes the line on stderr, given what the end is: `stopped by SIGTERM in the midst of a step`; empty
  /// where another process of the job speaks. Called in a thread of its own.
  std::function<std::string(const std::string& end)> line;
  bool at_once_when_told_again = true;
  std::chrono::milliseconds grace{};  ///< how long it has to act on the signal
};

/// Until the first call a process that does not act on a signal is not ended, and with nothing it is not any
/// more.
void set_last_resort(std::optional<LastResort> resort);

/// While one lives, nobody is ended so: what has begun to take its place is taken to the end.
class DeferLastResort {
 public:
  DeferLastResort();
  ~DeferLastResort();
  DeferLastResort(const DeferLastResort&) = delete;
  DeferLastResort& operator=(const DeferLastResort&) = delete;
};

/// To be called before a process ends by itself, by its error line at the latest: nobody else ends it any
/// more. Does not return when that has just begun.
void end_by_oneself();

/// The signal that asked to stop after the update in progress, or 0.
int soft_stop_signal();

/// The signal that asked to stop at once, or 0.
int hard_stop_signal();

/// For commands that no Control watches: throws StoppedError when any of the signals has come. `what` is what
/// that means, for the line: `nothing was changed`.
void require_no_signal(const char* what);

/// `SIGUSR1`
const char* signal_name(int signal);

}  // namespace weightcast
