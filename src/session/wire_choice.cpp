#include "session/wire_choice.hpp"

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

/// The GPU of this rank; null when there is none that it could take. `named[r]` is the one that rank r of the
/// node names, empty where it names none.
const VisibleGpu* own_gpu(const VisibleGpus& visible, const std::string& uuid,
                          const std::vector<std::string>& named, int rank_on_node) {
  const auto find = [&](const auto& matches) -> const VisibleGpu* {
    const auto found = std::find_if(visible.gpus.begin(), visible.gpus.end(), matches);
    return found == visible.gpus.end() ? nullptr : &*found;
  };
  if (!uuid.empty()) return find([&](const VisibleGpu& gpu) { return gpu.uuid == uuid; });
  std::vector<const VisibleGpu*> free;
  for (const VisibleGpu& gpu : visible.gpus) {
    if (std::find(named.begin(), named.end(), gpu.identity) == named.end()) free.push_back(&gpu);
  }
  if (free.empty()) return nullptr;
  const auto before = std::count(named.begin(), named.begin() + rank_on_node, "");
  return free[static_cast<std::size_t>(before) % free.size()];
}

/// Why NCCL cannot carry this rank's buckets; empty when it can.
std::string obstacle(const VisibleGpus& visible, const std::string& uuid, const VisibleGpu* own,
                     const std::vector<std::string>& of_node) {
  if (gpu_versions().empty()) return "this program was built without CUDA and NCCL";
  if (visible.gpus.empty()) return fmt::format("this rank sees no GPU ({})", visible.why_none);
  if (own == nullptr && !uuid.empty()) {
    return fmt::format("this rank does not see {}, where the memory is that it is for (CUDA_VISIBLE_DEVICES)",
                       uuid);
  }
  if (own == nullptr) return "all GPUs that this rank sees are other ranks'";
  const auto sharing = std::count(of_node.begin(), of_node.end(), own->identity);
  if (sharing == 1) return "";
  return fmt::format("{} ranks of this node would share GPU {} (this one sees {}), which NCCL refuses",
                     sharing, own->identity, visible.gpus.size());
}

}  // namespace

const char* wire_name(Wire wire) {
  return wire == Wire::kNccl ? "nccl" : "mpi";
}

WireChoice choose_wire(Control& control, const std::string& transport, const std::string& uuid) {
  if (transport == "mpi") return {};
  const auto start = std::chrono::steady_clock::now();
  const Communicator node = Communicator::same_node(control.comm());
  const VisibleGpus visible = visible_gpus();
  const auto identity = [](const VisibleGpu* gpu) { return gpu == nullptr ? "" : gpu->identity; };
  const std::vector<std::string> named =
      gather_identities(control, node, uuid.empty() ? "" : identity(own_gpu(visible, uuid, {}, node.rank())));
  const VisibleGpu* own = own_gpu(visible, uuid, named, node.rank());
  const std::string why_not = obstacle(visible, uuid, own, gather_identities(control, node, identity(own)));
  std::array<std::int64_t, 1> uuids{uuid.empty() ? 0 : 1};
  control.agreement.maximum(std::span<std::int64_t>(uuids));
  control.agreement.together([&] {
    if (transport != "nccl" || why_not.empty()) return;
    // Live memory is reached where it is, whatever else could carry it.
    const char* const instead = uuids[0] > 0 ? "" : ", or use --transport mpi";
    throw UsageError(fmt::format("{}: rank {} ({}): {}; start one rank for each GPU{}",
                                 uuids[0] > 0 ? "live memory on GPUs" : "--transport nccl", control.rank(),
                                 control.host(), why_not, instead));
  });
  std::array<std::int64_t, 1> obstacles{why_not.empty() ? 0 : 1};
  control.agreement.maximum(std::span<std::int64_t>(obstacles));
  if (obstacles[0] > 0) return {};
  WireChoice wire_choice;
  control.agreement.together([&] { wire_choice = {Wire::kNccl, use_gpu(*own), 0}; });
  wire_choice.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return wire_choice;
}

}  // namespace weightcast
