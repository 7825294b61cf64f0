#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include <mpi.h>

#include "plan/routes.hpp"

namespace weightcast {

/// Moves buckets along routes without waiting. Every rank of a route calls `start` for the same buckets in
/// the same order; a slot carries one bucket at a time.
class Transport {
 public:
  virtual ~Transport() = default;
  virtual std::string_view name() const = 0;

  /// Begins to broadcast a bucket along route number `route`: out of the runs on the root, into the runs on
  /// the others. All ranks of the route cut the bucket into runs of the same sizes. The memory is the
  /// transport's until `finished(slot)`.
  virtual void start(std::size_t slot, std::size_t route, std::span<const std::span<std::byte>> runs) = 0;

  /// True once the slot's bucket has left or arrived. Never waits; makes progress.
  virtual bool finished(std::size_t slot) = 0;

  /// Throws when the wire has failed since the last look, which a call need not have said.
  virtual void check() const {}
};

/// Over MPI, on any machine: a route with one receiver is sends and receives; one with more is a non-blocking
/// broadcast on its own communicator, as long as none of its ranks is in more than eight of them; the routes
/// where it pays most come first, the others are sends. Collective over `world`; `routes` are the same on all
/// ranks.
std::unique_ptr<Transport> make_mpi_transport(MPI_Comm world, const std::vector<Route>& routes,
                                              std::size_t slots);

}  // namespace weightcast
