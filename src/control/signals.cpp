#include "control/signals.hpp"

#include <fmt/format.h>
#include <semaphore.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <initializer_list>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "control/farewell.hpp"
#include "core/error.hpp"
#include "report/log.hpp"

namespace weightcast {

namespace {

using namespace std::chrono_literals;

// Handlers write them, and several threads read them.
std::atomic<int> soft_stop = 0;
std::atomic<int> hard_stop = 0;
std::atomic<int> hard_stops = 0;  // how many have come
static_assert(std::atomic<int>::is_always_lock_free, "a handler must not wait for a lock");

// A handler may post it, and wakes the thread so.
sem_t hard_stop_noted;

std::atomic<int> deferrals = 0;
enum class Ender { kNobody, kItself, kLastResort };
std::atomic<Ender> ender = Ender::kNobody;

/// Whether the process is ended by the one that asks.
bool is_ended_by(Ender who) {
  Ender nobody = Ender::kNobody;
  return ender.compare_exchange_strong(nobody, who) || nobody == who;
}

struct Resort {
  std::mutex mutex;
  std::optional<LastResort> value;
};

Resort& resort() {
  // Never destroyed: the thread outlives static objects.
  static auto& resort = *new Resort;  // NOLINT(cppcoreguidelines-owning-memory)
  return resort;
}

std::optional<LastResort> last_resort() {
  const std::scoped_lock lock(resort().mutex);
  return resort().value;
}

void take_note(int signal) {
  if (signal == SIGUSR1 && soft_stop == 0) {
    soft_stop = signal;
  } else {
    hard_stop = signal;
    ++hard_stops;
    ::sem_post(&hard_stop_noted);
  }
}

/// Ends the process when it should have ended by itself, unless that is not wanted just now.
void end_who_does_not_listen() {
  using Clock = std::chrono::steady_clock;
  constexpr auto kTick = 20ms;
  while (::sem_wait(&hard_stop_noted) != 0) continue;
  for (auto since = Clock::now(); ender == Ender::kNobody; std::this_thread::sleep_for(kTick)) {
    const std::optional<LastResort> how = last_resort();
    if (deferrals > 0 || !how) since = Clock::now();
    const bool told_again = hard_stops > 1 && how && how->at_once_when_told_again && deferrals == 0;
    if (!told_again && (!how || Clock::now() < since + how->grace)) continue;
    if (!is_ended_by(Ender::kLastResort)) return;
    const std::string line =
        how->line(fmt::format("stopped by {} in the midst of a step", signal_name(hard_stop)));
    // It may hang, too, where nobody empties the pipe that it goes into.
    if (!line.empty()) within(2s, [line] { log_error(line); });
    leave(ExitCode::kStopped);
  }
}

void start_last_resort() {
  ::sem_init(&hard_stop_noted, 0, 0);
  try {
    std::thread(&end_who_does_not_listen).detach();
  } catch (const std::system_error&) {
    // Where the system gives no thread, signals are polled for, as they are anyway.
  }
}

}  // namespace

void watch_signals() {
  static std::once_flag started;
  std::call_once(started, &start_last_resort);
  struct sigaction action = {};
  action.sa_handler = &take_note;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  for (const int signal : {SIGUSR1, SIGTERM, SIGINT}) sigaction(signal, &action, nullptr);
  struct sigaction before = {};
  sigaction(SIGHUP, nullptr, &before);
  if (before.sa_handler != SIG_IGN) sigaction(SIGHUP, &action, nullptr);
}

void set_last_resort(std::optional<LastResort> how) {
  const std::scoped_lock lock(resort().mutex);
  resort().value = std::move(how);
}

DeferLastResort::DeferLastResort() {
  ++deferrals;
  // It has begun to end the process already, and its line must stay true.
  while (ender == Ender::kLastResort) std::this_thread::sleep_for(1h);
}
DeferLastResort::~DeferLastResort() {
  --deferrals;
}

void end_by_oneself() {
  while (!is_ended_by(Ender::kItself)) std::this_thread::sleep_for(1h);
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
    case SIGHUP:
      return "SIGHUP";
    default:
      return "a signal";
  }
}

}  // namespace weightcast
