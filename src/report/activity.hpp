#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

#include "report/progress.hpp"

namespace weightcast {

/// What the program is doing while nobody sees bytes move: `weightcast: building the plan, 3 s` on stderr,
/// once that has taken two seconds; on a terminal one line that counts, in a log a line every ten seconds.
class Activity {
 public:
  Activity(ProgressMode mode, bool enabled);
  ~Activity();
  Activity(const Activity&) = delete;
  Activity& operator=(const Activity&) = delete;

  /// From now on it does that, `building the plan`, and what it did before has ended.
  void begin(std::string what);
  void end();

  /// Ends what an activity has begun, however its scope is left.
  class Scope {
   public:
    explicit Scope(Activity& activity) : activity_(activity) {}
    ~Scope() { activity_.end(); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Activity& activity_;
  };

 private:
  using Clock = std::chrono::steady_clock;
  void watch(const std::stop_token& stop);
  void print(Clock::time_point now);

  bool enabled_;
  bool terminal_;
  std::mutex mutex_;  ///< of what follows
  std::condition_variable_any changed_;
  std::string what_;  ///< empty: nothing
  bool printed_ = false;
  Clock::time_point start_;
  Clock::time_point next_;
  std::jthread watcher_;  ///< started by the first begin()
};

}  // namespace weightcast
