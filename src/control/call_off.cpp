#include "control/call_off.hpp"

#include <algorithm>

namespace weightcast {

namespace {

constexpr int kTag = 4;

}  // namespace

CallOff::CallOff(const ThisRank& self, Agreement& agreement)
    : self_(self), agreement_(agreement), comm_(Communicator::duplicate(self.comm.get())) {}

void CallOff::announce() {
  for (int rank = 0; rank < self_.size; ++rank) {
    if (rank == self_.rank) continue;
    MPI_Request request = MPI_REQUEST_NULL;
    WEIGHTCAST_MPI(MPI_Isend(&update_, 1, MPI_INT64_T, rank, kTag, comm_.get(), &request));
    agreement_.wait(request);
  }
}

bool CallOff::heard() {
  // Looking for messages costs a trip through MPI's progress engine; the callers poll very often.
  constexpr unsigned kPollsBetweenProbes = 16;
  if (called_off_ == update_ || ++polls_ % kPollsBetweenProbes != 0) return called_off_ == update_;
  for (;;) {
    int there = 0;
    MPI_Status status;
    WEIGHTCAST_MPI(MPI_Iprobe(MPI_ANY_SOURCE, kTag, comm_.get(), &there, &status));
    if (there == 0) return called_off_ == update_;
    // What comes of an earlier update is late: its end has been agreed on without this message.
    std::int64_t update = 0;
    WEIGHTCAST_MPI(
        MPI_Recv(&update, 1, MPI_INT64_T, status.MPI_SOURCE, kTag, comm_.get(), MPI_STATUS_IGNORE));
    called_off_ = std::max(called_off_, update);
  }
}

}  // namespace weightcast
