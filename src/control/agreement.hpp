#pragma once

#include <mpi.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "control/deadline.hpp"
#include "control/last_words.hpp"
#include "control/this_rank.hpp"
#include "core/error.hpp"

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

/// What all ranks do at the same point: agree that a phase has succeeded, or exchange a few values. A wait
/// that the deadline or a signal ends ends the job.
class Agreement {
 public:
  /// The most elements of one message: what MPI can count.
  static constexpr std::size_t kMostElements = std::numeric_limits<int>::max();

  /// What has more than `piece` elements, at least as many as there are ranks, travels in several messages;
  /// the same on every rank. All references must outlive this.
  Agreement(const ThisRank& self, Deadline& deadline, LastWords& last_words,
            std::size_t piece = kMostElements);

  /// Runs `local` (which does not communicate) on every rank, then agrees: when any rank threw, the lowest
  /// such rank prints its error and all throw AgreedFailure. Collective.
  void together(const std::function<void()>& local);

  /// From here on, until forget_said(), together() does not print a failure with just that line again.
  void note_said(const std::string& line) { said_.insert(line); }
  void forget_said() { said_.clear(); }

  /// Whether all ranks give the same hash. Collective.
  bool is_same(std::uint64_t hash);

  /// Fails with `otherwise` unless all ranks give the same hash. Collective.
  void require_same(std::uint64_t hash, const Error& otherwise);

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

 private:
  MPI_Comm comm() const { return self_.comm.get(); }
  std::vector<std::byte> broadcast_from(int root, std::vector<std::byte> bytes);

  /// Calls `start(offset, count, request)` for one piece of `total` elements after the other and waits for
  /// each.
  template <typename Start>
  void in_pieces(std::size_t total, Start start);
  /// Reduces over all ranks, element by element, in place. Collective.
  template <typename Value>
  void reduce(std::span<Value> values, MPI_Datatype type, MPI_Op operation);

  const ThisRank& self_;
  Deadline& deadline_;
  LastWords& last_words_;
  std::size_t piece_;
  std::set<std::string> said_;
};

}  // namespace weightcast
