#include "session/cuda/peer_memory.hpp"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "core/error.hpp"
#include "sys/cuda.hpp"
#include "sys/mpi.hpp"

namespace weightcast {

namespace {

constexpr std::size_t kIdentityWords = 4;

/// An allocation of another rank.
struct ToldAllocation {
  std::uint64_t address = 0;
  std::uint64_t bytes = 0;
  PeerHandle handle;
};
static_assert(sizeof(ToldAllocation) % sizeof(std::uint64_t) == 0);
constexpr std::size_t kAllocationWords = sizeof(ToldAllocation) / sizeof(std::uint64_t);

/// What a rank tells the others of its host, in words: a head, allocations, the addresses of its parameters.
struct ToldHead {
  std::uint64_t rank = 0;
  std::uint64_t has_words = 0;
  std::array<std::uint64_t, kIdentityWords> identity{};
  std::uint64_t allocations = 0;
  std::uint64_t parameters = 0;
};
constexpr std::size_t kHeadWords = sizeof(ToldHead) / sizeof(std::uint64_t);

template <typename Told>
Told told_at(std::span<const std::uint64_t> words, std::size_t at) {
  Told told;
  std::memcpy(static_cast<void*>(&told), words.subspan(at, sizeof(Told) / sizeof(std::uint64_t)).data(),
              sizeof told);
  return told;
}

template <typename Told>
void append(const Told& told, std::vector<std::uint64_t>& words) {
  const std::size_t at = words.size();
  words.resize(at + sizeof(Told) / sizeof(std::uint64_t));
  std::memcpy(words.data() + at, &told, sizeof told);
}

std::string identity_of(const ToldHead& head) {
  std::array<char, kIdentityWords * sizeof(std::uint64_t) + 1> text{};
  std::memcpy(text.data(), head.identity.data(), sizeof head.identity);
  return text.data();
}

/// What every rank of the node says, rank by rank.
std::vector<std::vector<std::uint64_t>> gather_all(Control& control, const Communicator& node,
                                                   const std::vector<std::uint64_t>& mine) {
  const auto size = static_cast<std::size_t>(node.size());
  const int count = mpi_count(mine.size());
  std::vector<int> counts(size);
  MPI_Request request = MPI_REQUEST_NULL;
  WEIGHTCAST_MPI(MPI_Iallgather(&count, 1, MPI_INT, counts.data(), 1, MPI_INT, node.get(), &request));
  control.agreement.wait(request);
  std::vector<int> starts(size);
  std::size_t total = 0;
  for (std::size_t i = 0; i < size; ++i) {
    starts[i] = mpi_count(total);
    total += static_cast<std::size_t>(counts[i]);
  }
  std::vector<std::uint64_t> all(total);
  WEIGHTCAST_MPI(MPI_Iallgatherv(mine.data(), count, MPI_UINT64_T, all.data(), counts.data(), starts.data(),
                                 MPI_UINT64_T, node.get(), &request));
  control.agreement.wait(request);
  std::vector<std::vector<std::uint64_t>> told;
  for (std::size_t i = 0; i < size; ++i) {
    const auto begin = all.begin() + starts[i];
    told.emplace_back(begin, begin + counts[i]);
  }
  return told;
}

/// Number of the device with that PCI address; -1 when this process does not see it.
int device_of(const std::string& identity) {
  for (int device = 0; device < visible_devices(); ++device) {
    if (device_identity(device) == identity) return device;
  }
  return -1;
}

}  // namespace

PeerMemory::PeerMemory(Control& control, const std::vector<Route>& routes,
                       std::span<const std::shared_ptr<Memory>> allocations,
                       std::span<std::byte* const> parameters, std::size_t words)
    : control_(control) {
  const Communicator node = Communicator::same_node(control.comm());
  share_words(node.get(), words);
  const std::vector<std::vector<std::uint64_t>> all =
      gather_all(control, node, describe(allocations, parameters));
  words_.unpublish();
  control.agreement.together([&] {
    for (const Route& route : routes) {
      if (route.root != control.rank()) continue;
      for (const int rank : others_of(route)) {
        peers_.try_emplace(rank, Peer{pair(rank, "they are on another host"), {}});
      }
    }
    for (const std::vector<std::uint64_t>& told : all) {
      const auto peer = peers_.find(static_cast<int>(told.front()));
      if (peer != peers_.end()) peer->second = open(told);
    }
  });
}

PeerMemory::~PeerMemory() {
  for (void* const memory : opened_) cudaIpcCloseMemHandle(memory);
}

void PeerMemory::share_words(MPI_Comm node, std::size_t words) {
  int rank = 0;
  WEIGHTCAST_MPI(MPI_Comm_rank(node, &rank));
  SharedWords::Name name;
  // Without them this rank is not reached, and reaches nobody.
  const auto quietly = [&](const auto& work) {
    try {
      work();
    } catch (const IoError&) {
      words_ = SharedWords();
    }
  };
  if (rank == 0) {
    quietly([&] {
      words_ = SharedWords(words);
      name = words_.name();
    });
  }
  MPI_Request request = MPI_REQUEST_NULL;
  WEIGHTCAST_MPI(MPI_Ibcast(&name, sizeof name, MPI_BYTE, 0, node, &request));
  control_.agreement.wait(request);
  if (rank != 0 && name.process != 0) quietly([&] { words_ = SharedWords(name); });
}

std::vector<std::uint64_t> PeerMemory::describe(std::span<const std::shared_ptr<Memory>> allocations,
                                                std::span<std::byte* const> parameters) const {
  int device = 0;
  WEIGHTCAST_CUDA(cudaGetDevice(&device));
  const std::string identity = device_identity(device);
  ToldHead head;
  head.rank = static_cast<std::uint64_t>(control_.rank());
  head.has_words = words_ ? 1 : 0;
  std::memcpy(head.identity.data(), identity.data(), std::min(identity.size(), sizeof head.identity));
  head.allocations = allocations.size();
  head.parameters = parameters.size();
  std::vector<std::uint64_t> words;
  append(head, words);
  for (const std::shared_ptr<Memory>& memory : allocations) {
    append(ToldAllocation{reinterpret_cast<std::uintptr_t>(memory->data()),
                          static_cast<std::uint64_t>(memory->bytes()), memory->peer_handle()},
           words);
  }
  for (const std::byte* const parameter : parameters)
    words.push_back(reinterpret_cast<std::uintptr_t>(parameter));
  return words;
}

PeerMemory::Peer PeerMemory::open(std::span<const std::uint64_t> told) {
  const auto head = told_at<ToldHead>(told, 0);
  const auto rank = static_cast<int>(head.rank);
  const auto refused = [&](const std::string& why) { return Peer{pair(rank, why), {}}; };
  if (!words_ || head.has_words == 0) {
    return refused("the two share no memory of the host; run them in one process namespace");
  }
  int own = 0;
  WEIGHTCAST_CUDA(cudaGetDevice(&own));
  const std::string identity = identity_of(head);
  const int device = device_of(identity);
  if (device < 0) {
    return refused(fmt::format("it does not see GPU {}, where they are (CUDA_VISIBLE_DEVICES)", identity));
  }
  int can = 0;
  WEIGHTCAST_CUDA(cudaDeviceCanAccessPeer(&can, own, device));
  if (can == 0) {
    return refused(fmt::format("GPU {} has no peer access to GPU {}", device_identity(own), identity));
  }
  std::vector<ToldAllocation> allocations;
  std::vector<std::byte*> mapped;
  for (std::size_t i = 0; i < head.allocations; ++i) {
    allocations.push_back(told_at<ToldAllocation>(told, kHeadWords + i * kAllocationWords));
    const ToldAllocation& allocation = allocations.back();
    const PeerHandle& handle = allocation.handle;
    mapped.push_back(nullptr);
    if (allocation.bytes == 0) continue;
    if (handle.kind == PeerHandle::Kind::kPieces) {
      return refused(
          "their memory is in pieces, not in allocations with a handle of CUDA's (expandable segments)");
    }
    if (handle.kind == PeerHandle::Kind::kNone) return refused("their memory is not on a GPU");
    auto status = static_cast<cudaError_t>(handle.error);
    void* memory = nullptr;
    if (handle.kind == PeerHandle::Kind::kIpc) {
      cudaIpcMemHandle_t ipc{};
      std::memcpy(&ipc, handle.ipc.data(), sizeof ipc);
      status = cudaIpcOpenMemHandle(&memory, ipc, cudaIpcMemLazyEnablePeerAccess);
      // Not an error to remember: NCCL is there.
      if (status != cudaSuccess) static_cast<void>(cudaGetLastError());
    }
    if (status != cudaSuccess) {
      return refused(fmt::format("CUDA does not share their memory ({})", cudaGetErrorString(status)));
    }
    opened_.push_back(memory);
    mapped.back() = static_cast<std::byte*>(memory);
  }
  Peer peer;
  const std::size_t first = kHeadWords + head.allocations * kAllocationWords;
  for (const std::uint64_t address : told.subspan(first, head.parameters)) {
    const auto in = std::ranges::find_if(allocations, [&](const ToldAllocation& a) {
      return address >= a.address && address - a.address < a.bytes;
    });
    std::byte* const base =
        in == allocations.end() ? nullptr : mapped[static_cast<std::size_t>(in - allocations.begin())];
    peer.parameters.push_back(base == nullptr ? nullptr : base + (address - in->address));
  }
  return peer;
}

std::string PeerMemory::pair(int rank, const std::string& why) const {
  return fmt::format("rank {} ({}) does not reach the parameters of rank {}: {}", control_.rank(),
                     control_.host(), rank, why);
}

bool PeerMemory::reaches(int rank) const {
  const auto found = peers_.find(rank);
  return found != peers_.end() && found->second.obstacle.empty();
}

std::vector<bool> PeerMemory::choose(const std::vector<Route>& routes, Direct direct,
                                     DirectWays& ways) const {
  std::string lines;
  for (const auto& [rank, peer] : peers_) {
    if (!peer.obstacle.empty()) lines += peer.obstacle + '\n';
  }
  control_.agreement.together([&] {
    if (direct != Direct::kAlways || lines.empty()) return;
    throw UsageError(fmt::format("--direct always: {}; use --direct auto, which sends over NCCL there",
                                 lines.substr(0, lines.find('\n'))));
  });
  std::vector<std::int64_t> unreached(routes.size(), 0);
  for (std::size_t i = 0; i < routes.size(); ++i) {
    if (routes[i].root != control_.rank()) continue;
    const std::vector<int> others = others_of(routes[i]);
    const bool all = std::ranges::all_of(others, [&](int rank) { return reaches(rank); });
    unreached[i] = all ? 0 : 1;
  }
  control_.agreement.maximum(std::span<std::int64_t>(unreached));
  std::vector<bool> reached;
  for (const std::int64_t no : unreached) reached.push_back(no == 0);
  for (const std::string& said : control_.agreement.gather(lines)) {
    for (std::size_t at = 0; at < said.size();) {
      const std::size_t end = said.find('\n', at);
      ways.obstacles.push_back(said.substr(at, end - at));
      at = end + 1;
    }
  }
  std::vector<bool> chosen = choose_direct(routes, reached, direct);
  for (std::size_t i = 0; i < routes.size(); ++i) {
    if (others_of(routes[i]).empty()) continue;
    ++(chosen[i] ? ways.direct_routes : ways.nccl_routes);
    (chosen[i] ? ways.direct_bytes : ways.nccl_bytes) += routes[i].bytes;
  }
  return chosen;
}

}  // namespace weightcast
