#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "control/control.hpp"
#include "memory/memory.hpp"
#include "plan/direct_routes.hpp"
#include "plan/routes.hpp"
#include "report/direct_ways.hpp"
#include "sys/shared_words.hpp"

namespace weightcast {

/// The parameters of the ranks that this one sends to, mapped on its device where it reaches them, and words
/// that the ranks of a host share.
class PeerMemory {
 public:
  /// Tells the other ranks of this host where this rank's parameters are, which lie in `allocations`, and
  /// maps theirs along the routes whose root it is. There are `words` shared words, zero at first. Collective
  /// over all ranks.
  PeerMemory(Control& control, const std::vector<Route>& routes,
             std::span<const std::shared_ptr<Memory>> allocations, std::span<std::byte* const> parameters,
             std::size_t words);
  ~PeerMemory();
  PeerMemory(const PeerMemory&) = delete;
  PeerMemory& operator=(const PeerMemory&) = delete;

  /// Which routes go directly, agreed on by all ranks. Throws (by agreement) UsageError naming a pair of
  /// ranks and why one does not reach the other's memory, where `direct` is kAlways. Collective.
  std::vector<bool> choose(const std::vector<Route>& routes, Direct direct, DirectWays& ways) const;

  /// This rank reaches that one's parameters.
  bool reaches(int rank) const;
  /// Their addresses on this device, by parameter.
  const std::vector<std::byte*>& parameters(int rank) const { return peers_.at(rank).parameters; }

  const SharedWords& words() const { return words_; }

 private:
  struct Peer {
    std::string obstacle;  ///< empty: it is reached
    std::vector<std::byte*> parameters;
  };

  void share_words(MPI_Comm node, std::size_t words);
  /// What this rank tells the others of its host.
  std::vector<std::uint64_t> describe(std::span<const std::shared_ptr<Memory>> allocations,
                                      std::span<std::byte* const> parameters) const;
  Peer open(std::span<const std::uint64_t> told);
  std::string pair(int rank, const std::string& why) const;

  Control& control_;
  SharedWords words_;
  std::map<int, Peer> peers_;  ///< those that this rank sends to
  std::vector<void*> opened_;
};

}  // namespace weightcast
