#pragma once

#include <string>

#include "sys/host.hpp"
#include "sys/mpi.hpp"

namespace weightcast {

/// Who this process is among the ranks of a job.
struct ThisRank {
  /// Collective.
  explicit ThisRank(MPI_Comm world) : comm(Communicator::duplicate(world)) {}

  Communicator comm;
  int rank = comm.rank();
  int size = comm.size();
  std::string host = this_host();
};

}  // namespace weightcast
