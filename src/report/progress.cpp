#include "report/progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "core/units.hpp"
#include "report/log.hpp"

namespace weightcast {

namespace {

using namespace std::chrono_literals;

constexpr auto kTerminalPeriod = 200ms;
constexpr auto kLogPeriod = 5s;

}  // namespace

Progress::Progress(ProgressMode mode, bool enabled)
    : enabled_(enabled && mode != ProgressMode::kNever && (mode == ProgressMode::kAlways || !is_quiet())),
      terminal_(isatty(STDERR_FILENO) != 0) {}

void Progress::begin(std::int64_t number, std::int64_t total_bytes) {
  number_ = number;
  total_ = total_bytes;
  done_ = 0;
  start_ = Clock::now();
  next_ = start_ + (terminal_ ? Clock::duration(kTerminalPeriod) : Clock::duration(kLogPeriod));
}

void Progress::advance(std::int64_t bytes) {
  done_ += bytes;
  if (!enabled_) return;
  const auto now = Clock::now();
  if (now >= next_) print(now);
}

void Progress::end() {
  if (printed_ && terminal_) end_open_line();
  printed_ = false;
}

void Progress::print(Clock::time_point now) {
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double rate = static_cast<double>(done_) / std::max(seconds, 1e-9);
  const double left = static_cast<double>(total_ - done_) / std::max(rate, 1.0);
  const std::string line =
      fmt::format("version {}: {} of {}, {:.0f} %, {:.2f} GB/s, {:.0f} s left", number_, format_bytes(done_),
                  format_bytes(total_),
                  100.0 * static_cast<double>(done_) / static_cast<double>(std::max<std::int64_t>(1, total_)),
                  rate / 1e9, left);
  if (terminal_) {
    write_log(fmt::format("\rweightcast: {}\x1b[K", line));
    set_open_line(true);
  } else {
    write_log(fmt::format("weightcast: {}\n", line));
  }
  printed_ = true;
  next_ = now + (terminal_ ? Clock::duration(kTerminalPeriod) : Clock::duration(kLogPeriod));
}

}  // namespace weightcast
