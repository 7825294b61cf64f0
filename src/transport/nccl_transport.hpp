#pragma once

#include <array>
#include <functional>
#include <map>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "memory/device_buffer.hpp"
#include "sys/cuda.hpp"
#include "sys/nccl.hpp"
#include "transport/transport.hpp"

namespace weightcast {

/// Over NCCL, between ranks that each have a GPU of their own; runs are device memory. A route is a broadcast
/// on a communicator of its members, as long as none of them is in more than eight, the routes where it pays
/// most coming first; the others are grouped sends and receives on a communicator of all ranks, and so are
/// routes with one receiver where roots receive, too. No call waits.
///
/// A route's broadcasts take turns on two lanes, each a stream with communicators of its own: while the end
/// of one bucket leaves a link half idle, the beginning of the next fills it. Every rank puts what it takes
/// part in into a lane in the same global order, and the device has room for the kernels of both, so that the
/// earliest unfinished bucket can always move.
class NcclTransport final : public Transport {
 public:
  /// Collective over `world`; `routes` are the same on all ranks, and the device is the current one. Opens
  /// all connections, so that the first update is as fast as the next. `poll` is called while others are
  /// waited for; to give up it ends the job, because what MPI and the device still work on must stay.
  NcclTransport(MPI_Comm world, const std::vector<Route>& routes, std::size_t slots,
                std::function<void()> poll);
  ~NcclTransport() override;
  NcclTransport(const NcclTransport&) = delete;
  NcclTransport& operator=(const NcclTransport&) = delete;

  std::string_view name() const override { return "nccl"; }
  void start(std::size_t slot, std::size_t route, std::span<const std::span<std::byte>> runs) override;
  bool finished(std::size_t slot) override;
  void check() const override;

  /// What is started while one lives, of different roots, travels at once from `start_all` on: a rank sends
  /// while it receives. Gone without that, it forgets what was started.
  class Group {
   public:
    explicit Group(NcclTransport& transport);
    ~Group();
    Group(const Group&) = delete;
    Group& operator=(const Group&) = delete;

    void start_all();

   private:
    NcclTransport& transport_;
  };

  /// Happens when what was started last in the slot has left or arrived.
  const CudaEvent& end(std::size_t slot) const { return ends_.at(slot); }

  /// The streams of the lanes, and the one that the route's next bucket is put into.
  std::span<const CudaStream> streams() const { return streams_; }
  cudaStream_t next_stream(std::size_t route) const {
    return streams_[next_lane(connections_.at(route))].get();
  }

  /// Ends what is under way, wherever it is: what it moves is undefined afterwards, and nothing can be
  /// started before `reopen`. The device is at rest when it returns.
  void abort();
  /// Opens everything again after an abort, on this rank or another. Collective over the world.
  void reopen();

  /// Polls until everything started so far has left or arrived.
  void wait() const;

  /// Seconds that opening the communicators, and the first transfer along every route, took.
  double opening_seconds() const { return opening_seconds_; }
  double connecting_seconds() const { return connecting_seconds_; }

  /// Broadcasts `bytes` of world rank `root` to all ranks of `members` (ascending, root among them), one
  /// after the other on the first lane: the wire alone, to compare with. Collective over the members, which
  /// must be those of an earlier `open_members`.
  void broadcast(const std::vector<int>& members, int root, std::byte* data, std::size_t bytes);
  /// Opens the communicator that `broadcast` needs. Collective over the world.
  void open_members(const std::vector<int>& members);

 private:
  using Members = std::vector<int>;

  static constexpr std::int64_t kScratchBytes = 4096;

  static constexpr std::size_t kMostLanes = 2;
  /// Of the same members, by lane.
  using Communicators = std::array<NcclCommunicator, kMostLanes>;

  struct Connection {
    int root = 0;
    Members receivers;
    const Communicators* broadcast = nullptr;  ///< of its members; null: sends and receives
    int broadcast_root = 0;                    ///< the root's rank there
    std::size_t started = 0;                   ///< buckets so far: the same on all members

    bool point_to_point() const { return broadcast == nullptr; }
  };

  struct Started {
    std::size_t slot = 0;
    Connection* connection = nullptr;
    std::vector<std::span<std::byte>> runs;
  };

  void start_group();
  void drop_communicators();
  void choose();
  /// How many lanes the smallest device has room for. Collective over the world.
  std::size_t agree_on_lanes();
  /// On the first `lanes` lanes. Collective over the world; a rank outside gets empty ones.
  const Communicators& open(const Members& members, std::size_t lanes);
  void connect();
  std::size_t next_lane(const Connection& connection) const {
    return connection.point_to_point() ? 0 : connection.started % streams_.size();
  }
  void await(MPI_Request request) const;
  /// In the connection's next lane, where the slot ends, too.
  void broadcast_runs(std::size_t slot, Connection& connection, std::span<const std::span<std::byte>> runs);
  void send_or_receive(const Connection& connection, std::span<const std::span<std::byte>> runs);
  void settle(const NcclCommunicator& communicator) const { communicator.settle(poll_); }

  MPI_Comm world_;
  std::vector<Route> routes_;
  int rank_ = 0;
  int size_ = 0;
  std::function<void()> poll_;
  std::vector<CudaStream> streams_;  ///< by lane
  CudaEvent idle_{CudaEvent::Kind::kOrder};
  // Freeing memory waits for the device, which waits for others until the communicators are gone.
  DeviceBuffer scratch_{kScratchBytes, "opening connections"};
  std::map<Members, Communicators> communicators_;
  std::set<std::pair<Members, std::size_t>> opened_;  ///< members and lane, on ranks outside, too
  std::set<Members> compared_;                        ///< of open_members()
  const NcclCommunicator* all_ = nullptr;             ///< for sends and receives, when there are any
  std::vector<Connection> connections_;               ///< of the routes
  std::vector<CudaEvent> ends_;                       ///< of the slots
  bool grouping_ = false;
  std::vector<Started> group_;  ///< keeps its capacity, like the runs in it
  std::size_t group_size_ = 0;
  double opening_seconds_ = 0;
  double connecting_seconds_ = 0;
};

}  // namespace weightcast
