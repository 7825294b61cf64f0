#include "control/watchdog.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "control/farewell.hpp"
#include "core/error.hpp"
#include "report/log.hpp"

namespace weightcast {

using namespace std::chrono_literals;

namespace {

// When the first has cleaned up, the launcher has ended the others. Should it not have, those behind the
// first few end together, and a line of each would hide what the first ones have said.
constexpr auto kStagger = 5s;
constexpr int kMostStaggers = 6;

std::chrono::seconds staggered(std::chrono::seconds limit, int rank) {
  return limit + std::min(rank, kMostStaggers) * kStagger;
}

}  // namespace

Watchdog::Watchdog(const char* name, std::chrono::seconds limit, int rank)
    : name_(name),
      limit_(staggered(limit, rank)),
      rank_(rank),
      deadline_(Clock::now() + limit_),
      thread_([this](const std::stop_token& stop) { run(stop); }) {}

void Watchdog::watch_rank(int rank, const char* name, std::chrono::seconds limit) {
  const std::scoped_lock lock(mutex_);
  name_ = name;
  limit_ = at_once_ ? limit : staggered(limit, rank);
  rank_ = rank;
  deadline_ = Clock::now() + limit_;
  changed_.notify_all();
}

void Watchdog::share_the_word(std::function<bool()> may_speak, bool all) {
  const std::scoped_lock lock(mutex_);
  may_speak_ = std::move(may_speak);
  at_once_ = all;
}

void Watchdog::run(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  while (!stop.stop_requested()) {
    const auto deadline = deadline_;
    changed_.wait_until(lock, stop, deadline, [&] { return deadline_ != deadline; });
    if (stop.stop_requested() || Clock::now() < deadline_) continue;
    // The line first: what comes next may meet the file system that hangs. It may hang itself, where nobody
    // empties the pipe that it goes into.
    if (may_speak_ ? may_speak_() : rank_ < kMostStaggers) {
      constexpr auto kLineGrace = 2s;
      within(kLineGrace,
             [line = fmt::format("rank {}: {}: has hung for {} s and is ended; look for a rank that died, or "
                                 "raise --timeout",
                                 rank_, name_, limit_.count())] { log_error(line); });
    }
    leave(ExitCode::kTimeout);
  }
}

}  // namespace weightcast
