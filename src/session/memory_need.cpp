#include "session/memory_need.hpp"

#include <fmt/format.h>

#include <string>

#include "core/error.hpp"
#include "core/units.hpp"
#include "memory/available.hpp"
#include "session/gpu.hpp"
#include "sys/mpi.hpp"

namespace weightcast {

namespace {

/// `1.5 GiB of parameters, 768 MiB of staging, 0 B of source`
std::string parts(const MemoryNeed& need) {
  return fmt::format("{} of parameters, {} of staging, {} of source", format_bytes(need.parameters),
                     format_bytes(need.staging), format_bytes(need.source));
}

}  // namespace

void require_node_memory(Control& control, const MemoryNeed& need, const char* also) {
  const Communicator node = Communicator::same_node(control.comm());
  const std::int64_t own_need = need.all();
  std::int64_t node_need = 0;
  MPI_Request request = MPI_REQUEST_NULL;
  const std::int64_t on_node = available_node_bytes();
  const std::int64_t own = available_process_bytes();
  WEIGHTCAST_MPI(MPI_Iallreduce(&own_need, &node_need, 1, MPI_INT64_T, MPI_SUM, node.get(), &request));
  control.agreement.wait(request);
  control.agreement.together([&] {
    if (node_need > on_node) {
      throw IoError(
          fmt::format("memory: the ranks of this node need {} (this one {}) but {} are available; use more "
                      "nodes, a larger tp or a smaller --bucket-size{}",
                      format_bytes(node_need), parts(need), format_bytes(on_node), also));
    }
    if (own_need > own) {
      throw IoError(fmt::format(
          "memory: this rank needs {} ({}) but its address-space limit leaves {} available; raise "
          "ulimit -v, or use a larger tp or a smaller --bucket-size{}",
          format_bytes(own_need), parts(need), format_bytes(own), also));
    }
  });
}

void require_gpu_memory(Control& control, const MemoryNeed& need, const char* also) {
  // Programs and digests need a little beside the rest.
  constexpr std::int64_t kPrograms = std::int64_t{64} << 20;
  control.agreement.together([&] {
    const std::int64_t available = available_gpu_bytes();
    if (need.all() + kPrograms <= available) return;
    throw IoError(
        fmt::format("device memory: this rank needs {} ({}) but {} are available; use more GPUs, a larger tp "
                    "or a smaller --bucket-size{}",
                    format_bytes(need.all() + kPrograms), parts(need), format_bytes(available), also));
  });
}

}  // namespace weightcast
