#include "session/signals.hpp"

#include <csignal>
#include <initializer_list>

namespace weightcast {

namespace {

volatile std::sig_atomic_t soft_stop = 0;
volatile std::sig_atomic_t hard_stop = 0;

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
