#include "launch/job/file_threads.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "sys/mpi.hpp"

namespace weightcast {

namespace {

/// The cores that this process may use; 1 where the system does not say. A set for 1,024 cores, as the C
/// library has it by itself, is too small for large machines.
std::int64_t usable_cores() {
  constexpr std::size_t kFirst = 1024;
  constexpr std::size_t kMost = std::size_t{1} << 20;
  for (std::size_t cores = kFirst; cores <= kMost; cores *= 2) {
    const std::unique_ptr<cpu_set_t, void (*)(cpu_set_t*)> set(CPU_ALLOC(cores),
                                                               [](cpu_set_t* owned) { CPU_FREE(owned); });
    if (set == nullptr) return 1;
    const std::size_t bytes = CPU_ALLOC_SIZE(cores);
    if (sched_getaffinity(0, bytes, set.get()) == 0) return CPU_COUNT_S(bytes, set.get());
    if (errno != EINVAL) return 1;
  }
  return 1;
}

}  // namespace

int file_threads(Control& control, bool busy) {
  constexpr std::int64_t kMost = 16;
  const Communicator node = Communicator::same_node(control.comm());
  const std::int64_t mine = busy ? 1 : 0;
  std::int64_t ranks = 0;
  MPI_Request request = MPI_REQUEST_NULL;
  WEIGHTCAST_MPI(MPI_Iallreduce(&mine, &ranks, 1, MPI_INT64_T, MPI_SUM, node.get(), &request));
  control.agreement.wait(request);
  if (!busy) return 1;
  const std::int64_t cores = usable_cores();
  const bool bound = cores < sysconf(_SC_NPROCESSORS_ONLN);
  return static_cast<int>(std::clamp<std::int64_t>(bound ? cores : cores / ranks, 1, kMost));
}

}  // namespace weightcast
