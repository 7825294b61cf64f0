// To be preloaded into a job: stands before MPI's sending functions and flips one bit of one message on its
// way. The sender's memory stays as it is; what travels is a copy. Which message, in the environment:
//   FLIP_RANK         the rank that sends it
//   FLIP_LEAST_BYTES  only messages of at least so many bytes count
//   FLIP_MESSAGE      number of the message among those, from 0
//   FLIP_BYTE         the byte in it

#include <mpi.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <vector>

namespace {

long variable(const char* name, long otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtol(text, nullptr, 10);
}

class Flipper {
 public:
  /// The bytes to send: those given, or a copy of them with one bit flipped.
  const void* pass(const void* data, int count, MPI_Datatype type) {
    int element = 0;
    PMPI_Type_size(type, &element);
    const long bytes = static_cast<long>(count) * element;
    if (rank() != rank_ || bytes < least_bytes_ || counted_++ != message_ || byte_ >= bytes) return data;
    // Kept until the process ends, because nobody here knows when the message has left.
    std::vector<unsigned char>& copy = copies_.emplace_back(static_cast<std::size_t>(bytes));
    std::memcpy(copy.data(), data, copy.size());
    copy[static_cast<std::size_t>(byte_)] ^= 0x04u;
    std::fprintf(stderr, "flipped a bit of byte %ld of message %ld (%ld bytes)\n", byte_, message_, bytes);
    return copy.data();
  }

 private:
  static long rank() {
    int rank = 0;
    PMPI_Comm_rank(MPI_COMM_WORLD, &rank);
    return rank;
  }

  long rank_ = variable("FLIP_RANK", 0);
  long least_bytes_ = variable("FLIP_LEAST_BYTES", 1);
  long message_ = variable("FLIP_MESSAGE", -1);
  long byte_ = variable("FLIP_BYTE", 0);
  long counted_ = 0;
  std::deque<std::vector<unsigned char>> copies_;
};

Flipper& flipper() {
  static auto* const flipper = new Flipper;
  return *flipper;
}

}  // namespace

// NOLINTBEGIN(readability-identifier-naming): MPI's names
extern "C" int MPI_Isend(const void* data, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm,
                         MPI_Request* request) {
  return PMPI_Isend(flipper().pass(data, count, type), count, type, to, tag, comm, request);
}

extern "C" int MPI_Ibcast(void* data, int count, MPI_Datatype type, int root, MPI_Comm comm,
                          MPI_Request* request) {
  int rank = 0;
  PMPI_Comm_rank(comm, &rank);
  // The root only reads the buffer.
  void* from = rank == root ? const_cast<void*>(flipper().pass(data, count, type)) : data;
  return PMPI_Ibcast(from, count, type, root, comm, request);
}
// NOLINTEND(readability-identifier-naming)
