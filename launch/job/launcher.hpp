#pragma once

#include <chrono>
#include <functional>

#include "control/control.hpp"

namespace weightcast {

/// True when the environment shows a launcher that Open MPI can start under (mpirun, or srun with PMIx).
bool has_mpi_launcher();

/// Runs `job` as one rank of an MPI job and returns the process's exit code, the same on every rank. Whatever
/// goes wrong ends in one error line from one rank. Throws UsageError, before MPI is started, when nothing or
/// the wrong thing launched this process.
int run_as_rank(const std::function<void(Control&)>& job, std::chrono::seconds timeout);

/// True for the one process that speaks before MPI is there: rank 0 as far as the environment tells.
bool speaks_for_all();

/// Of a rank that has failed before it could tell others: whether the launcher ends the job within two
/// seconds anyway, because the rank that speaks has failed, too.
bool others_have_ended();

}  // namespace weightcast
