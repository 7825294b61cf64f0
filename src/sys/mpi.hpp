#pragma once

#include <mpi.h>

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>
#include <utility>
#include <vector>

namespace weightcast {

/// Throws IoError with MPI's own text unless `status` is MPI_SUCCESS, InternalError where the program has
/// asked for what MPI does not do. `call` names what was called.
void check_mpi(int status, const char* call, std::source_location where = std::source_location::current());

// A macro, because the text of the call belongs into the message.
#define WEIGHTCAST_MPI(call) ::weightcast::check_mpi((call), #call)  // NOLINT(cppcoreguidelines-macro-usage)

/// A number of elements as MPI takes it. Throws InternalError for more than an int holds: such things have to
/// be sent in pieces.
int mpi_count(std::size_t count, std::source_location where = std::source_location::current());

/// MPI between its initialisation and finalisation. One per process; only the thread that made it calls MPI.
class MpiEnvironment {
 public:
  MpiEnvironment();
  ~MpiEnvironment();
  MpiEnvironment(const MpiEnvironment&) = delete;
  MpiEnvironment& operator=(const MpiEnvironment&) = delete;

  /// Seconds that the initialisation took; 0 before it.
  static double start_seconds();

  /// First line of the library's version text: `Open MPI v4.1.4`.
  static std::string library_version();

 private:
  /// Takes over what has been initialised, with that support for threads, before anything can fail.
  explicit MpiEnvironment(int threads) : threads_(threads) {}

  int threads_;
};

/// Owns a communicator. Errors on it are returned, not fatal.
class Communicator {
 public:
  Communicator() = default;
  /// A duplicate of `parent`, so that our messages never meet those of others. Collective.
  static Communicator duplicate(MPI_Comm parent);
  /// The ranks of one node. Collective.
  static Communicator same_node(MPI_Comm parent);
  /// A communicator of the listed ranks of `parent`, in that order. Collective over those ranks alone.
  static Communicator of_ranks(MPI_Comm parent, const std::vector<int>& ranks, int tag);

  ~Communicator();
  Communicator(Communicator&& other) noexcept : comm_(std::exchange(other.comm_, MPI_COMM_NULL)) {}
  Communicator& operator=(Communicator&& other) noexcept {
    std::swap(comm_, other.comm_);
    return *this;
  }
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  MPI_Comm get() const { return comm_; }
  int rank() const;
  int size() const;

 private:
  /// Takes the communicator over before anything can fail.
  static Communicator adopt(MPI_Comm comm);
  explicit Communicator(MPI_Comm comm) : comm_(comm) {}
  MPI_Comm comm_ = MPI_COMM_NULL;
};

}  // namespace weightcast
