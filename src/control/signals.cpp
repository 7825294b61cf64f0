#include "control/signals.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <initializer_list>

#include "core/error.hpp"

namespace weightcast {

namespace {

// Handlers write them, and several threads read them.
std::atomic<int> soft_stop = 0;
std::atomic<int> hard_stop = 0;
static_assert(std::atomic<int>::is_always_lock_free, "a handler must not wait for a lock");

void take_note(int signal) {
  if (signal == SIGUSR1 && soft_stop == 0) {
    soft_stop = signal;
  } else {
    hard_stop = signal;
  }
}

}  // namespace

void watch_signals() {
  struct sigaction action = {};
  action.sa_handler = &take_note;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  for (const int signal : {SIGUSR1, SIGTERM, SIGINT}) sigaction(signal, &action, nullptr);
}

int soft_stop_signal() {
  return soft_stop;
}
int hard_stop_signal() {
  return hard_stop;
}

void require_no_signal(const char* what) {
  const int signal = std::max(soft_stop_signal(), hard_stop_signal());
  if (signal != 0) throw StoppedError(fmt::format("stopped by {}; {}", signal_name(signal), what));
}

const char* signal_name(int signal) {
  switch (signal) {
    case SIGUSR1:
      return "SIGUSR1";
    case SIGTERM:
      return "SIGTERM";
    case SIGINT:
      return "SIGINT";
    default:
      return "a signal";
  }
}

}  // namespace weightcast
