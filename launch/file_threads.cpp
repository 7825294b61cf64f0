#include "launch/file_threads.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>

#include "sys/mpi.hpp"

namespace weightcast {

int file_threads(Control& control, bool busy) {
  constexpr std::int64_t kMost = 16;
  const Communicator node = Communicator::same_node(control.comm());
  const std::int64_t mine = busy ? 1 : 0;
  std::int64_t ranks = 0;
  MPI_Request request = MPI_REQUEST_NULL;
  WEIGHTCAST_MPI(MPI_Iallreduce(&mine, &ranks, 1, MPI_INT64_T, MPI_SUM, node.get(), &request));
  control.wait(request);
  if (!busy) return 1;
  cpu_set_t set;
  CPU_ZERO(&set);
  const std::int64_t cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  const bool bound = cores < sysconf(_SC_NPROCESSORS_ONLN);
  return static_cast<int>(std::clamp<std::int64_t>(bound ? cores : cores / ranks, 1, kMost));
}

}  // namespace weightcast
