#include "control/deadline.hpp"

#include <fmt/format.h>

#include "control/farewell.hpp"

namespace weightcast {

namespace {

using namespace std::chrono_literals;

// How long after the deadline a rank that does not even poll is ended.
constexpr auto kWatchdogGrace = 1s;

// How long a rank has to act on a signal. When the first one hangs, others speak for it after a second and
// more.
constexpr auto kSignalGrace = 8s;

}  // namespace

Deadline::Deadline(const ThisRank& self, const Neighbours& neighbours, LastWords& last_words,
                   Watchdog& watchdog, std::chrono::seconds timeout)
    : self_(self), neighbours_(neighbours), last_words_(last_words), watchdog_(watchdog), timeout_(timeout) {
  // Of ranks of several hosts the first speaks: where another is ended so, the launcher stops that one, and
  // it has the word. A launcher repeats its signals: the second says no more than the first.
  set_last_resort(LastResort{[this](const std::string& end) {
                               const bool may_speak = self_.rank == 0 || neighbours_.are_all();
                               return may_speak && neighbours_.take_the_word() ? last_resort_line(end) : "";
                             },
                             false, kSignalGrace});
  watchdog_.share_the_word(neighbours_.word(), neighbours_.are_all());
  begin_phase("start");
}

Deadline::~Deadline() {
  set_last_resort(std::nullopt);
}

std::string Deadline::last_resort_line(const std::string& end) const {
  const std::scoped_lock lock(phase_mutex_);
  return fmt::format("rank {} ({}): {}: {}; {}", self_.rank, self_.host, phase(), end, left());
}

void Deadline::begin_phase(const char* name, std::optional<std::int64_t> number, std::string_view in_place) {
  {
    const std::scoped_lock lock(phase_mutex_);
    phase_name_ = name;
    phase_number_ = number;
    in_place_ = in_place;
  }
  deadline_ = Clock::now() + timeout_;
  watchdog_.watch_rank(self_.rank, name, timeout_ + kWatchdogGrace);
}

void Deadline::put_in_place(std::string_view in_place) {
  const std::scoped_lock lock(phase_mutex_);
  in_place_ = in_place;
}

std::string Deadline::phase() const {
  return phase_number_ ? fmt::format("{} {}", phase_name_, *phase_number_) : phase_name_;
}

std::string_view Deadline::left() const {
  constexpr std::string_view kNothingNew = "the previous version is untouched";
  return in_place_.empty() ? kNothingNew : std::string_view(in_place_);
}

void Deadline::poll() {
  // Looking for messages costs a trip through MPI's progress engine; the callers poll very often. Others'
  // failures come before this rank's own: one that slept through its deadline must not speak after others
  // have.
  constexpr int kPollsBetweenProbes = 16;
  if (++polls_ % kPollsBetweenProbes == 0) last_words_.hear();
  if (const int signal = hard_stop_signal(); signal != 0) stop(signal);
  if (Clock::now() > deadline_) {
    throw TimeoutError(
        fmt::format("{}: not done after {} s; {}; raise --timeout or look for the rank that hangs", phase(),
                    timeout_.count(), left()));
  }
}

void Deadline::stop(int signal) {
  if (const auto dead = neighbours_.dead()) {
    // What ranks put in place together cannot be done without it.
    throw IoError(
        fmt::format("{}: rank {} has died: it was killed, for want of memory perhaps, or has crashed; {}; "
                    "look into the system's log",
                    phase(), *dead, left()));
  }
  if (deferrals_ == 0)
    throw StoppedError(fmt::format("{}: stopped by {}; {}", phase(), signal_name(signal), left()));
  if (last_words_.another_has_spoken()) {
    // The job has ended, and the signal is the launcher's. What ended it belongs into rank 0's report.
    last_words_.hear();
    leave(ExitCode::kStopped);
  }
}

Error Deadline::in_phase(const std::exception& exception) const {
  Error error = error_of(exception);
  // What libraries throw does not say what was being done.
  if (dynamic_cast<const Error*>(&exception) != nullptr) return error;
  return {error.code(), fmt::format("{}: {}", phase(), error.what())};
}

}  // namespace weightcast
