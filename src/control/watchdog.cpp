#include "control/watchdog.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "control/farewell.hpp"
#include "core/error.hpp"
#include "report/log.hpp"

namespace weightcast {

using namespace std::chrono_literals;

Watchdog::Watchdog(const char* name, std::chrono::seconds limit, bool speaks)
    : name_(name),
      limit_(limit),
      speaks_(speaks),
      deadline_(Clock::now() + limit),
      thread_([this](const std::stop_token& stop) { run(stop); }) {}

void Watchdog::watch(const char* name, std::chrono::seconds limit, bool speaks) {
  const std::scoped_lock lock(mutex_);
  name_ = name;
  limit_ = limit;
  speaks_ = speaks;
  deadline_ = Clock::now() + limit;
  changed_.notify_all();
}

void Watchdog::watch_rank(int rank, const char* name, std::chrono::seconds limit) {
  // When the first has cleaned up, the launcher has ended the others. Should it not have, those behind the
  // first few end together, and a line of each would hide what the first ones have said.
  constexpr auto kStagger = 5s;
  constexpr int kMostStaggers = 6;
  watch(name, limit + std::min(rank, kMostStaggers) * kStagger, rank < kMostStaggers);
}

void Watchdog::run(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  while (!stop.stop_requested()) {
    const auto deadline = deadline_;
    changed_.wait_until(lock, stop, deadline, [&] { return deadline_ != deadline; });
    if (stop.stop_requested() || Clock::now() < deadline_) continue;
    // The line first: what comes next may meet the file system that hangs. It may hang itself, where nobody
    // empties the pipe that it goes into.
    if (speaks_) {
      constexpr auto kLineGrace = 2s;
      within(kLineGrace, [line = fmt::format(
                              "{}: this rank has hung for {} s and is ended; look for a rank that died, or "
                              "raise --timeout",
                              name_, limit_.count())] { log_error(line); });
    }
    leave(ExitCode::kTimeout);
  }
}

}  // namespace weightcast
