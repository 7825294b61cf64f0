#include <algorithm>
#include <optional>

#include "core/error.hpp"
#include "sys/mpi.hpp"
#include "transport/broadcast_choice.hpp"
#include "transport/transport.hpp"

namespace weightcast {

namespace {

// MPI counts are ints; larger buckets travel as several messages.
constexpr std::size_t kMessageBytes = std::size_t{1} << 30;

class MpiTransport final : public Transport {
 public:
  MpiTransport(MPI_Comm world, const std::vector<Route>& routes, std::size_t slots)
      : world_(Communicator::duplicate(world)), rank_(world_.rank()), requests_(slots) {
    links_.reserve(routes.size());
    for (const Route& route : routes) {
      links_.push_back({route.root, receivers_of(route), std::nullopt});
    }
    open_communicators(choose_broadcasts(routes, world_.size(), 2));
  }

  std::string_view name() const override { return "mpi"; }

  void start(std::size_t slot, std::size_t route, std::span<const std::span<std::byte>> runs) override {
    for (std::span<std::byte> run : runs) {
      while (!run.empty()) {
        const auto message = run.first(std::min(run.size(), kMessageBytes));
        start_message(slot, links_.at(route), message);
        run = run.subspan(message.size());
      }
    }
  }

  bool finished(std::size_t slot) override {
    std::vector<MPI_Request>& requests = requests_.at(slot);
    int done = 0;
    WEIGHTCAST_MPI(MPI_Testall(mpi_count(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE));
    if (done != 0) requests.clear();
    return done != 0;
  }

 private:
  // Messages between two ranks arrive in the order sent, which is the plan's order on both sides.
  static constexpr int kTag = 1;

  struct Link {
    int root = 0;
    std::vector<int> receivers;
    std::optional<Communicator> broadcast;  // on the members of a broadcast

    bool has(int rank) const {
      return root == rank || std::find(receivers.begin(), receivers.end(), rank) != receivers.end();
    }
  };

  void start_message(std::size_t slot, const Link& link, std::span<std::byte> message) {
    const auto count = mpi_count(message.size());
    if (link.broadcast) {
      WEIGHTCAST_MPI(
          MPI_Ibcast(message.data(), count, MPI_BYTE, 0, link.broadcast->get(), add_request(slot)));
    } else if (link.root == rank_) {
      for (const int receiver : link.receivers) {
        WEIGHTCAST_MPI(
            MPI_Isend(message.data(), count, MPI_BYTE, receiver, kTag, world_.get(), add_request(slot)));
      }
    } else {
      WEIGHTCAST_MPI(
          MPI_Irecv(message.data(), count, MPI_BYTE, link.root, kTag, world_.get(), add_request(slot)));
    }
  }

  /// The slot keeps its capacity, so only the first update allocates.
  MPI_Request* add_request(std::size_t slot) { return &requests_.at(slot).emplace_back(MPI_REQUEST_NULL); }

  /// In route order on every rank, so that no two ranks wait for each other in different groups.
  void open_communicators(const std::vector<bool>& broadcasts) {
    for (std::size_t route = 0; route < links_.size(); ++route) {
      Link& link = links_[route];
      if (!broadcasts[route] || !link.has(rank_)) continue;
      std::vector<int> ranks{link.root};
      ranks.insert(ranks.end(), link.receivers.begin(), link.receivers.end());
      link.broadcast = Communicator::of_ranks(world_.get(), ranks, static_cast<int>(route % 32768));
    }
  }

  Communicator world_;
  int rank_;
  std::vector<Link> links_;
  std::vector<std::vector<MPI_Request>> requests_;
};

}  // namespace

std::unique_ptr<Transport> make_mpi_transport(MPI_Comm world, const std::vector<Route>& routes,
                                              std::size_t slots) {
  return std::make_unique<MpiTransport>(world, routes, slots);
}

}  // namespace weightcast
