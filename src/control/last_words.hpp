#pragma once

#include <functional>
#include <optional>
#include <string>

#include "control/neighbours.hpp"
#include "control/this_rank.hpp"
#include "control/watchdog.hpp"
#include "core/error.hpp"
#include "sys/mpi.hpp"

namespace weightcast {

/// Sees to it that a job which ends in failure prints exactly one error line, whichever rank fails and
/// whichever hangs, and that it then ends on every rank with that failure's exit code.
class LastWords {
 public:
  /// Collective. All references must outlive this.
  LastWords(const ThisRank& self, const Neighbours& neighbours, Watchdog& watchdog);

  /// Called on rank 0 with the code and the line of a failure that ends the job, before the process ends.
  void on_abort(std::function<void(ExitCode, const std::string&)> hook) { abort_hook_ = std::move(hook); }

  /// Ends the job from a rank that failed while others are waiting for it: rank 0 prints one line and aborts
  /// all with the error's code. Does not return.
  [[noreturn]] void abort_all(const Error& cause);

  /// On rank 0: ends the job when another rank has reported a failure.
  void hear();

  /// Whether another rank has printed the job's one line, as far as this one has heard.
  bool another_has_spoken() const;

  /// `rank 3 (host): …`, printable; usage and input errors name their culprit and go without the rank.
  std::string line_of(const Error& error) const;

 private:
  /// What a failing rank tells rank 0.
  struct Failure {
    ExitCode code = ExitCode::kInternal;
    std::string line;
  };

  /// On rank 0: what another rank has reported, if any has.
  std::optional<Failure> receive_failure();
  /// On rank 0, which has failed itself: the same, of a rank that knows more of it.
  std::optional<Failure> better_reason_than(const Failure& mine);
  /// Tells rank 0; prints the line should neither rank 0 nor a lower rank have done so in time.
  void send_failure(const Failure& failure);
  /// Prints the line, unless another rank of the host has, and before that tells all others that they need
  /// not.
  void speak_for_all(const std::string& line) const;
  /// On rank 0: prints the line, unless another rank got tired of waiting and has, and ends the job.
  [[noreturn]] void report_and_abort(const Failure& failure);
  [[noreturn]] void abort_now(ExitCode code, const std::string& line) const;

  const ThisRank& self_;
  const Neighbours& neighbours_;
  Watchdog& watchdog_;
  Communicator comm_;  ///< of its own: words about a failure must not meet an agreement's messages
  std::function<void(ExitCode, const std::string&)> abort_hook_;
};

}  // namespace weightcast
