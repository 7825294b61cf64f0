#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "control/last_words.hpp"
#include "control/neighbours.hpp"
#include "control/signals.hpp"
#include "control/this_rank.hpp"
#include "control/watchdog.hpp"
#include "core/error.hpp"

namespace weightcast {

/// What a rank is doing and how long it may take: the phase, its deadline, and the signals that end it. Every
/// polling loop of the program asks here, so that no rank waits for ever.
class Deadline {
 public:
  /// `timeout` bounds each phase (the start, one update). All references must outlive this.
  Deadline(const ThisRank& self, const Neighbours& neighbours, LastWords& last_words, Watchdog& watchdog,
           std::chrono::seconds timeout);

  ~Deadline();
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;

  /// Starts a phase: its name (a literal), with a number when there is one, appears in errors, and the
  /// deadline counts from now. `in_place` says what is when a signal or the deadline ends it; empty while
  /// nothing new is.
  void begin_phase(const char* name, std::optional<std::int64_t> number = std::nullopt,
                   std::string_view in_place = "");

  /// From here on in this phase that is what a signal or the deadline leaves.
  void put_in_place(std::string_view in_place);

  /// What the phase has said is in place.
  const std::string& in_place() const { return in_place_; }

  /// While one lives, signals do not end this rank, nor its waits: the ranks are putting something in place
  /// together.
  class DeferSignals {
   public:
    explicit DeferSignals(Deadline& deadline) : deadline_(deadline) { ++deadline_.deferrals_; }
    ~DeferSignals() { --deadline_.deferrals_; }
    DeferSignals(const DeferSignals&) = delete;
    DeferSignals& operator=(const DeferSignals&) = delete;

   private:
    Deadline& deadline_;
    DeferLastResort no_last_resort_;
  };

  /// To be called in every polling loop: throws TimeoutError or StoppedError when it is time to, IoError when
  /// the launcher ends the job because a rank has died; on rank 0 also ends the job when another rank has
  /// reported a failure.
  void poll();

  /// Any exception as an error; what a library threw with the phase in front.
  Error in_phase(const std::exception& exception) const;

 private:
  using Clock = std::chrono::steady_clock;

  /// `update to version 3`
  std::string phase() const;
  /// What a rank says that is ended because it does not act on a signal.
  std::string last_resort_line(const std::string& end) const;
  /// What a phase that is ended leaves.
  std::string_view left() const;

  /// Acts on a signal to stop at once.
  void stop(int signal);

  const ThisRank& self_;
  const Neighbours& neighbours_;
  LastWords& last_words_;
  Watchdog& watchdog_;
  std::chrono::seconds timeout_;
  mutable std::mutex phase_mutex_;  ///< this thread alone changes what follows, another may read it
  const char* phase_name_ = "start";
  std::optional<std::int64_t> phase_number_;
  std::string in_place_;
  int deferrals_ = 0;
  Clock::time_point deadline_;
  unsigned polls_ = 0;
};

}  // namespace weightcast
