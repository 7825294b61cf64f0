#include "session/placement.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <vector>

#include "core/error.hpp"
#include "session/gpu.hpp"
#include "sys/mpi.hpp"

namespace weightcast {

namespace {

/// The identities of the GPUs that the ranks of a node would work on.
std::vector<std::string> gather_identities(Control& control, const Communicator& node,
                                           const std::string& own) {
  constexpr std::size_t kLength = 32;
  using Identity = std::array<char, kLength>;
  Identity mine{};
  std::copy_n(own.begin(), std::min(own.size(), kLength - 1), mine.begin());
  std::vector<Identity> all(static_cast<std::size_t>(node.size()));
  MPI_Request request = MPI_REQUEST_NULL;
  WEIGHTCAST_MPI(
      MPI_Iallgather(mine.data(), kLength, MPI_CHAR, all.data(), kLength, MPI_CHAR, node.get(), &request));
  control.agreement.wait(request);
  std::vector<std::string> identities;
  for (const Identity& identity : all) identities.emplace_back(identity.data());
  return identities;
}

/// Why NCCL cannot carry this rank's buckets; empty when it can.
std::string obstacle(const OwnGpu& gpu, const std::vector<std::string>& of_node) {
  if (gpu_versions().empty()) return "this program was built without CUDA and NCCL";
  if (gpu.visible == 0) return fmt::format("this rank sees no GPU ({})", gpu.why_none);
  const auto sharing = std::count(of_node.begin(), of_node.end(), gpu.identity);
  if (sharing == 1) return "";
  return fmt::format("{} ranks of this node would share GPU {} (this one sees {}), which NCCL refuses",
                     sharing, gpu.identity, gpu.visible);
}

}  // namespace

const char* wire_name(Wire wire) {
  return wire == Wire::kNccl ? "nccl" : "mpi";
}

Placement choose_placement(Control& control, const std::string& transport) {
  if (transport == "mpi") return {};
  const auto start = std::chrono::steady_clock::now();
  const Communicator node = Communicator::same_node(control.comm());
  const OwnGpu gpu = own_gpu(node.rank());
  const std::string why_not = obstacle(gpu, gather_identities(control, node, gpu.identity));
  control.agreement.together([&] {
    if (transport != "nccl" || why_not.empty()) return;
    throw UsageError(
        fmt::format("--transport nccl: rank {} ({}): {}; start one rank for each GPU, or use --transport mpi",
                    control.rank(), control.host(), why_not));
  });
  std::array<std::int64_t, 1> obstacles{why_not.empty() ? 0 : 1};
  control.agreement.maximum(std::span<std::int64_t>(obstacles));
  if (obstacles[0] > 0) return {};
  Placement placement;
  control.agreement.together([&] { placement = {Wire::kNccl, use_gpu(gpu), 0}; });
  placement.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return placement;
}

}  // namespace weightcast
