#include "report/progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "core/text.hpp"
#include "core/units.hpp"
#include "report/lines.hpp"
#include "report/log.hpp"

namespace weightcast {

namespace {

using namespace std::chrono_literals;

constexpr auto kProgressOnTerminal = 200ms;
constexpr auto kProgressInLog = 5s;

}  // namespace

bool progress_is_shown(ProgressMode mode) {
  return mode != ProgressMode::kNever && (mode == ProgressMode::kAlways || !is_quiet());
}

void write_progress(bool terminal, const std::vector<std::string>& parts) {
  const std::size_t width = terminal ? line_width(STDERR_FILENO) : 0;
  std::string line = "weightcast: ";
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const std::string part = (i == 0 ? "" : ", ") + printable(parts[i]);
    // The last character of a terminal's line stays free: the cursor would go to the next one.
    if (terminal && i > 0 && width_of(line) + width_of(part) >= width) break;
    line += part;
  }
  if (!terminal) return write_log(line + "\n");
  write_log(fmt::format("\r{}\x1b[K", first_characters(line, width - 1)));
  set_open_line(true);
}

Progress::Progress(ProgressMode mode, bool enabled)
    : enabled_(enabled && progress_is_shown(mode)), terminal_(isatty(STDERR_FILENO) != 0) {}

void Progress::begin(std::int64_t version, std::int64_t total_bytes) {
  version_ = version;
  name_.clear();
  begin(total_bytes);
}

void Progress::begin(std::string name, std::int64_t total_bytes) {
  name_ = std::move(name);
  begin(total_bytes);
}

void Progress::begin(std::int64_t total_bytes) {
  total_ = total_bytes;
  done_ = 0;
  start_ = Clock::now();
  next_ = start_ + (terminal_ ? Clock::duration(kProgressOnTerminal) : Clock::duration(kProgressInLog));
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
  const double share = static_cast<double>(done_) / static_cast<double>(std::max<std::int64_t>(1, total_));
  write_progress(terminal_,
                 {fmt::format("{}: {} of {}", name_.empty() ? fmt::format("version {}", version_) : name_,
                              format_bytes(done_), format_bytes(total_)),
                  fmt::format("{:.0f} %", 100 * share),
                  fmt::format("{}/s", format_bytes(static_cast<std::int64_t>(rate))),
                  fmt::format("{:.0f} s left", left)});
  printed_ = true;
  next_ = now + (terminal_ ? Clock::duration(kProgressOnTerminal) : Clock::duration(kProgressInLog));
}

}  // namespace weightcast
