#pragma once

#include <mpi.h>

#include <functional>

namespace weightcast::mpi_test {

/// Runs `body` on the first `ranks` ranks of the world, with a communicator of just them; the others go on
/// and wait asleep at the end of the test. Collective over the world.
void on_ranks(int ranks, const std::function<void(MPI_Comm)>& body);

/// Waits until every rank of the communicator is here, asleep, so that those still at work have the cores.
/// False when somebody has not come for a minute.
bool meet(MPI_Comm comm);

}  // namespace weightcast::mpi_test
