#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

namespace weightcast {

enum class ProgressMode : std::uint8_t { kAuto, kAlways, kNever };

/// Whether progress is shown: not to who has asked for quiet, unless always.
bool progress_is_shown(ProgressMode mode);

/// `weightcast: a, b, c` on stderr: on a terminal the one line that is rewritten, of which the last parts are
/// left out where it is too narrow; in a log a line of its own. Made printable.
void write_progress(bool terminal, const std::vector<std::string>& parts);

/// A sign of life on stderr: bytes, share, rate and time left. On a terminal one line that is rewritten
/// several times a second, in a log one line every few seconds.
class Progress {
 public:
  Progress(ProgressMode mode, bool enabled);

  /// `version` is on its way.
  void begin(std::int64_t version, std::int64_t total_bytes);
  /// `name` is: a file that is written.
  void begin(std::string name, std::int64_t total_bytes);
  /// Cheap; prints only when it is time.
  void advance(std::int64_t bytes);
  void end();

 private:
  using Clock = std::chrono::steady_clock;
  void begin(std::int64_t total_bytes);
  void print(Clock::time_point now);

  bool enabled_;
  bool terminal_;
  bool printed_ = false;
  std::string name_;  ///< empty: that version
  std::int64_t version_ = 0;
  std::int64_t total_ = 0;
  std::int64_t done_ = 0;
  Clock::time_point start_;
  Clock::time_point next_;
};

}  // namespace weightcast
