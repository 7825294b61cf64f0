#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace weightcast {

enum class ProgressMode : std::uint8_t { kAuto, kAlways, kNever };

/// A sign of life on stderr: bytes, share, rate and time left. On a terminal one line that is rewritten
/// several times a second, in a log one line every few seconds.
class Progress {
 public:
  Progress(ProgressMode mode, bool enabled);

  /// `number` is the version that is on its way.
  void begin(std::int64_t number, std::int64_t total_bytes);
  /// Cheap; prints only when it is time.
  void advance(std::int64_t bytes);
  void end();

 private:
  using Clock = std::chrono::steady_clock;
  void print(Clock::time_point now);

  bool enabled_;
  bool terminal_;
  bool printed_ = false;
  std::int64_t number_ = 0;
  std::int64_t total_ = 0;
  std::int64_t done_ = 0;
  Clock::time_point start_;
  Clock::time_point next_;
};

}  // namespace weightcast
