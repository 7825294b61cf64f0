#include "transport/nccl_transport.hpp"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <set>
#include <thread>

#include "sys/backoff.hpp"
#include "sys/mpi.hpp"
#include "transport/broadcast_choice.hpp"

namespace weightcast {

namespace {

using Clock = std::chrono::steady_clock;

/// The members of a broadcast, ascending.
std::vector<int> members_of(int root, const std::vector<int>& receivers) {
  std::vector<int> members = receivers;
  members.push_back(root);
  std::sort(members.begin(), members.end());
  return members;
}

int index_of(const std::vector<int>& members, int rank) {
  return static_cast<int>(std::lower_bound(members.begin(), members.end(), rank) - members.begin());
}

bool contains(const std::vector<int>& members, int rank) {
  return std::binary_search(members.begin(), members.end(), rank);
}

}  // namespace

NcclTransport::NcclTransport(MPI_Comm world, const std::vector<Route>& routes, std::size_t slots,
                             std::function<void()> poll)
    : world_(world), routes_(routes), poll_(std::move(poll)) {
  WEIGHTCAST_MPI(MPI_Comm_rank(world, &rank_));
  WEIGHTCAST_MPI(MPI_Comm_size(world, &size_));
  const std::size_t lanes = agree_on_lanes();
  streams_.reserve(lanes);
  for (std::size_t lane = 0; lane < lanes; ++lane) streams_.emplace_back(CudaStream::Priority::kHigh);
  for (std::size_t slot = 0; slot < slots; ++slot) ends_.emplace_back(CudaEvent::Kind::kOrder);
  group_.resize(slots);
  const auto start = Clock::now();
  choose();
  const auto opened = Clock::now();
  connect();
  opening_seconds_ = std::chrono::duration<double>(opened - start).count();
  connecting_seconds_ = std::chrono::duration<double>(Clock::now() - opened).count();
}

std::size_t NcclTransport::agree_on_lanes() {
  // A kernel of NCCL takes up to 32 multiprocessors for itself. Without room for those of all lanes at once
  // two ranks could each wait for the lane that the other has no room for.
  constexpr int kMultiprocessorsOfLane = 36;
  const int mine = multiprocessors();
  int least = 0;
  MPI_Request request = MPI_REQUEST_NULL;
  WEIGHTCAST_MPI(MPI_Iallreduce(&mine, &least, 1, MPI_INT, MPI_MIN, world_, &request));
  await(request);
  return std::clamp<std::size_t>(static_cast<std::size_t>(least / kMultiprocessorsOfLane), 1, kMostLanes);
}

void NcclTransport::await(MPI_Request request) const {
  Backoff backoff;
  for (int done = 0; done == 0;) {
    WEIGHTCAST_MPI(MPI_Test(&request, &done, MPI_STATUS_IGNORE));
    if (done != 0) break;
    poll_();
    backoff.pause();
  }
}

void NcclTransport::choose() {
  // A single receiver gets a broadcast, too: it was measured to be 5 % faster than a send and a receive. Not
  // where roots receive: there sends and receives travel both ways at once, and broadcasts do not.
  std::set<int> receivers;
  for (const Route& route : routes_) {
    for (const int rank : receivers_of(route)) receivers.insert(rank);
  }
  const bool both_ways = std::any_of(routes_.begin(), routes_.end(),
                                     [&](const Route& route) { return receivers.contains(route.root); });
  const std::vector<bool> broadcasts = choose_broadcasts(routes_, size_, both_ways ? 2 : 1);
  bool sends = false;
  for (std::size_t i = 0; i < routes_.size(); ++i) {
    Connection connection{routes_[i].root, receivers_of(routes_[i]), nullptr, 0};
    if (broadcasts[i]) {
      const Members members = members_of(connection.root, connection.receivers);
      connection.broadcast = &open(members, streams_.size());
      connection.broadcast_root = index_of(members, connection.root);
    } else {
      sends = sends || !connection.receivers.empty();
    }
    connections_.push_back(std::move(connection));
  }
  if (!sends) return;
  Members everyone(static_cast<std::size_t>(size_));
  std::iota(everyone.begin(), everyone.end(), 0);
  all_ = &open(everyone, 1).front();
}

const NcclTransport::Communicators& NcclTransport::open(const Members& members, std::size_t lanes) {
  Communicators& opened = communicators_[members];
  // One at a time in the same order everywhere, so that no two ranks wait for each other in different groups.
  for (std::size_t lane = 0; lane < lanes; ++lane) {
    if (!opened_.emplace(members, lane).second) continue;
    ncclUniqueId id{};
    if (rank_ == members.front()) id = make_nccl_id();
    MPI_Request request = MPI_REQUEST_NULL;
    WEIGHTCAST_MPI(MPI_Ibcast(&id, sizeof id, MPI_BYTE, members.front(), world_, &request));
    await(request);
    if (!contains(members, rank_)) continue;
    opened.at(lane).open(id, index_of(members, rank_), mpi_count(members.size()));
    settle(opened.at(lane));
  }
  return opened;
}

void NcclTransport::connect() {
  const std::span<std::byte> run(scratch_.data(), kScratchBytes);
  for (std::size_t lane = 0; lane < streams_.size(); ++lane) {
    for (std::size_t route = 0; route < routes_.size(); ++route) {
      const Connection& connection = connections_[route];
      if (rank_ != connection.root && !contains(connection.receivers, rank_)) continue;
      start(0, route, {&run, 1});
    }
  }
  wait();
}

NcclTransport::~NcclTransport() {
  drop_communicators();
}

void NcclTransport::drop_communicators() {
  {
    // All at once: one that frees its memory waits for the kernels of the others.
    std::vector<std::jthread> aborts;
    for (auto& [members, by_lane] : communicators_) {
      for (NcclCommunicator& communicator : by_lane) {
        if (communicator) aborts.emplace_back([&communicator] { communicator.abort(); });
      }
    }
  }
  communicators_.clear();
}

void NcclTransport::abort() {
  connections_.clear();
  all_ = nullptr;
  drop_communicators();
  opened_.clear();
  // Kernels of an aborted communicator end by themselves.
  WEIGHTCAST_CUDA(cudaDeviceSynchronize());
}

void NcclTransport::reopen() {
  abort();
  choose();
  for (const Members& members : compared_) static_cast<void>(open(members, 1));
  connect();
}

void NcclTransport::wait() const {
  for (const CudaStream& stream : streams_) {
    idle_.record(stream.get());
    for (Backoff backoff; !idle_.reached(); backoff.pause()) {
      check();
      poll_();
    }
  }
}

void NcclTransport::start(std::size_t slot, std::size_t route, std::span<const std::span<std::byte>> runs) {
  Connection& connection = connections_.at(route);
  if (grouping_) {
    Started& started = group_.at(group_size_++);
    started.slot = slot;
    started.connection = &connection;
    started.runs.assign(runs.begin(), runs.end());
    return;
  }
  if (!connection.point_to_point()) return broadcast_runs(slot, connection, runs);
  if (!connection.receivers.empty()) {
    NcclGroup group;
    send_or_receive(connection, runs);
    group.close();
    settle(*all_);
  }
  ends_.at(slot).record(streams_.front().get());
}

NcclTransport::Group::Group(NcclTransport& transport) : transport_(transport) {
  transport_.grouping_ = true;
}

NcclTransport::Group::~Group() {
  transport_.grouping_ = false;
  transport_.group_size_ = 0;
}

void NcclTransport::Group::start_all() {
  transport_.start_group();
}

void NcclTransport::start_group() {
  const std::span<const Started> started(group_.data(), group_size_);
  // First the broadcasts, in their order, then the sends and receives at once: the same on every rank.
  // Broadcasts of different communicators must not be in one group, whose order is NCCL's own.
  bool sends = false;
  for (const Started& one : started) {
    if (!one.connection->point_to_point()) {
      broadcast_runs(one.slot, *one.connection, one.runs);
    } else {
      sends = sends || !one.connection->receivers.empty();
    }
  }
  if (sends) {
    NcclGroup group;
    for (const Started& one : started) {
      if (one.connection->point_to_point()) send_or_receive(*one.connection, one.runs);
    }
    group.close();
    settle(*all_);
  }
  for (const Started& one : started) {
    if (one.connection->point_to_point()) ends_.at(one.slot).record(streams_.front().get());
  }
}

void NcclTransport::broadcast_runs(std::size_t slot, Connection& connection,
                                   std::span<const std::span<std::byte>> runs) {
  const std::size_t lane = next_lane(connection);
  ++connection.started;
  const NcclCommunicator& communicator = connection.broadcast->at(lane);
  const cudaStream_t stream = streams_[lane].get();
  for (const std::span<std::byte> run : runs) {
    WEIGHTCAST_NCCL(ncclBroadcast(run.data(), run.data(), run.size(), ncclUint8, connection.broadcast_root,
                                  communicator.get(), stream));
    settle(communicator);
  }
  ends_.at(slot).record(stream);
}

void NcclTransport::send_or_receive(const Connection& connection,
                                    std::span<const std::span<std::byte>> runs) {
  const cudaStream_t stream = streams_.front().get();
  for (const std::span<std::byte> run : runs) {
    if (connection.root != rank_) {
      WEIGHTCAST_NCCL(ncclRecv(run.data(), run.size(), ncclUint8, connection.root, all_->get(), stream));
      continue;
    }
    for (const int receiver : connection.receivers) {
      WEIGHTCAST_NCCL(ncclSend(run.data(), run.size(), ncclUint8, receiver, all_->get(), stream));
    }
  }
}

bool NcclTransport::finished(std::size_t slot) {
  return ends_.at(slot).reached();
}

void NcclTransport::check() const {
  for (const auto& [members, by_lane] : communicators_) {
    for (const NcclCommunicator& communicator : by_lane) {
      if (communicator) communicator.check();
    }
  }
}

void NcclTransport::open_members(const std::vector<int>& members) {
  compared_.insert(members);
  static_cast<void>(open(members, 1));
}

void NcclTransport::broadcast(const std::vector<int>& members, int root, std::byte* data, std::size_t bytes) {
  const NcclCommunicator& communicator = communicators_.at(members).front();
  WEIGHTCAST_NCCL(ncclBroadcast(data, data, bytes, ncclUint8, index_of(members, root), communicator.get(),
                                streams_.front().get()));
  settle(communicator);
}

}  // namespace weightcast
