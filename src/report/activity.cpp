#include "report/activity.hpp"

#include <fmt/format.h>
#include <pthread.h>
#include <unistd.h>

#include <csignal>
#include <system_error>
#include <utility>

#include "report/log.hpp"

namespace weightcast {

namespace {

using namespace std::chrono_literals;

constexpr auto kSilence = 2s;
constexpr auto kActivityOnTerminal = 1s;
constexpr auto kActivityInLog = 10s;

/// Signals are for the threads that do the work.
void take_no_signals() {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
}

}  // namespace

Activity::Activity(ProgressMode mode, bool enabled)
    : enabled_(enabled && progress_is_shown(mode)), terminal_(isatty(STDERR_FILENO) != 0) {}

Activity::~Activity() {
  end();
}

void Activity::begin(std::string what) {
  if (!enabled_) return;
  end();
  {
    const std::scoped_lock lock(mutex_);
    what_ = std::move(what);
    start_ = Clock::now();
    next_ = start_ + kSilence;
  }
  changed_.notify_all();
  if (watcher_.joinable()) return;
  try {
    watcher_ = std::jthread([this](const std::stop_token& stop) { watch(stop); });
  } catch (const std::system_error&) {
    // A sign of life is not worth a failure.
    enabled_ = false;
  }
}

void Activity::end() {
  if (!enabled_) return;
  const std::scoped_lock lock(mutex_);
  what_.clear();
  if (printed_ && terminal_) end_open_line();
  printed_ = false;
}

void Activity::watch(const std::stop_token& stop) {
  take_no_signals();
  std::unique_lock lock(mutex_);
  while (!stop.stop_requested()) {
    if (what_.empty()) {
      changed_.wait(lock, stop, [&] { return !what_.empty(); });
      continue;
    }
    const Clock::time_point next = next_;
    changed_.wait_until(lock, stop, next, [&] { return next_ != next || what_.empty(); });
    const auto now = Clock::now();
    if (!stop.stop_requested() && !what_.empty() && now >= next_) print(now);
  }
}

void Activity::print(Clock::time_point now) {
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(now - start_).count();
  write_progress(terminal_, {what_, fmt::format("{} s", seconds)});
  printed_ = true;
  next_ = now + (terminal_ ? Clock::duration(kActivityOnTerminal) : Clock::duration(kActivityInLog));
}

}  // namespace weightcast
