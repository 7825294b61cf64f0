#pragma once

#include <mpi.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "control/watchdog.hpp"
#include "core/error.hpp"
#include "sys/mpi.hpp"

namespace weightcast {

/// Thrown on every rank once all have agreed that some rank failed and that rank has printed its line.
class AgreedFailure : public std::exception {
 public:
  AgreedFailure(ExitCode code, std::string line) : code_(code), line_(std::move(line)) {}
  ExitCode code() const { return code_; }
  /// The line as printed, the same on every rank.
  const char* what() const noexcept override { return line_.c_str(); }

 private:
  ExitCode code_;
  std::string line_;
};

/// What keeps the ranks of a job together: agreement after every phase, one deadline, signals, and exactly
/// one error line whichever rank fails. Every wait of the program goes through it, so that no rank waits for
/// ever.
class Control {
 public:
  /// The most elements of one message: what MPI can count.
  static constexpr std::size_t kMostElements = std::numeric_limits<int>::max();

  /// Collective. `timeout` bounds each phase (the start, one update). `watchdog` ends a rank that does not
  /// even poll; it must outlive the control. What has more than `piece` elements, at least as many as there
  /// are ranks, travels in several messages; the same on every rank.
  Control(MPI_Comm world, std::chrono::seconds timeout, Watchdog& watchdog,
          std::size_t piece = kMostElements);
  ~Control();
  Control(const Control&) = delete;
  Control& operator=(const Control&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  MPI_Comm comm() const { return comm_.get(); }
  const std::string& host() const { return host_; }

  /// Starts a phase: its name (a literal), with a number when there is one, appears in errors, and the
  /// deadline counts from now. `in_place` says what is when a signal or the deadline ends it; empty while
  /// nothing new is.
  void begin_phase(const char* name, std::optional<std::int64_t> number = std::nullopt,
                   std::string_view in_place = "");

  /// What the phase has said is in place.
  const std::string& in_place() const { return in_place_; }

  /// Fails with `otherwise` unless all ranks give the same hash. Collective.
  void require_same(std::uint64_t hash, const Error& otherwise);

  /// While one lives, signals do not end this rank's waits: the ranks are putting something in place
  /// together.
  class DeferSignals {
   public:
    explicit DeferSignals(Control& control) : control_(control) { control_.signals_deferred_ = true; }
    ~DeferSignals() { control_.signals_deferred_ = false; }
    DeferSignals(const DeferSignals&) = delete;
    DeferSignals& operator=(const DeferSignals&) = delete;

   private:
    Control& control_;
  };

  /// Called on rank 0 with the code and the line of a failure that ends the job, before the process ends.
  void on_abort(std::function<void(ExitCode, const std::string&)> hook) { abort_hook_ = std::move(hook); }

  /// Runs `local` (which does not communicate) on every rank, then agrees: when any rank threw, the lowest
  /// such rank prints its error and all throw AgreedFailure. Collective.
  void together(const std::function<void()>& local);

  /// To be called in every polling loop: throws TimeoutError or StoppedError when it is time to; on rank 0
  /// also ends the job when another rank has reported a failure.
  void poll();

  /// Polls until the request is complete. Ends the job when it is time to: what MPI still works on must stay.
  void wait(MPI_Request& request);

  /// Sum over all ranks, element by element, in place. Collective.
  void sum(std::span<std::uint64_t> values);
  /// Maximum over all ranks, element by element, in place. Collective.
  void maximum(std::span<double> values);
  void maximum(std::span<std::int64_t> values);
  /// Bytes of rank 0 (of `root`) to all. Collective.
  std::vector<std::byte> broadcast(std::vector<std::byte> bytes);
  std::string broadcast(const std::string& text, int root = 0);
  /// The text of every rank, in rank order, on rank 0 (empty elsewhere). Collective.
  std::vector<std::string> gather(const std::string& text);

  /// Ends the job from a rank that failed while others are waiting for it: rank 0 prints one line and aborts
  /// all with the error's code. Does not return.
  [[noreturn]] void abort_all(const Error& cause);

 private:
  /// What a failing rank tells rank 0.
  struct Failure {
    ExitCode code = ExitCode::kInternal;
    std::string line;
  };

  /// On rank 0: what another rank has reported, if any has.
  std::optional<Failure> receive_failure();
  /// Tells rank 0; prints the line should neither rank 0 nor a lower rank have done so in time.
  void send_failure(const Failure& failure);
  /// Prints the line, and before that tells all others that they need not.
  void speak_for_all(const std::string& line) const;
  bool another_has_spoken() const;
  /// On rank 0: prints the line, unless another rank got tired of waiting and has, and ends the job.
  [[noreturn]] void report_and_abort(const Failure& failure);

  /// Any exception as an error; what a library threw with the phase in front.
  Error in_phase(const std::exception& exception) const;
  /// `rank 3 (host): …`, printable; usage and input errors name their culprit and go without the rank.
  std::string format_error(const Error& error) const;
  /// `update to version 3`
  std::string phase() const;
  /// What a phase that is ended leaves.
  std::string_view left() const;

  /// Lets the watchdog watch that phase from now on; the first ranks are ended one behind the other.
  void watch(const char* name, std::chrono::seconds limit);

  using Clock = std::chrono::steady_clock;

  [[noreturn]] void abort_now(ExitCode code, const std::string& line) const;
  std::vector<std::byte> broadcast_from(int root, std::vector<std::byte> bytes);

  /// Calls `start(offset, count, request)` for one piece of `total` elements after the other and waits for
  /// each.
  template <typename Start>
  void in_pieces(std::size_t total, Start start);
  /// Reduces over all ranks, element by element, in place. Collective.
  template <typename Value>
  void reduce(std::span<Value> values, MPI_Datatype type, MPI_Op operation);

  Communicator comm_;
  Communicator failures_;
  int rank_;
  int size_;
  std::string host_;
  std::chrono::seconds timeout_;
  Watchdog& watchdog_;
  std::size_t piece_;
  const char* phase_name_ = "start";
  std::optional<std::int64_t> phase_number_;
  std::string in_place_;
  bool signals_deferred_ = false;
  std::function<void(ExitCode, const std::string&)> abort_hook_;
  Clock::time_point deadline_;
  unsigned polls_ = 0;
};

}  // namespace weightcast
