#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "control/control.hpp"
#include "plan/plan.hpp"
#include "plan/rank_plan.hpp"

namespace weightcast {

/// Sends and receives `bytes` bytes at `data`, to or from world rank `peer`.
struct PlainMessage {
  int peer = 0;
  bool send = false;
  std::int64_t offset = 0;  ///< in the ring
  std::int64_t bytes = 0;
};

/// What a rank sends and receives in each round of a plan whose buckets each go from one rank to one other,
/// from and into a ring of `plan.limits.buffers` slots.
std::vector<std::vector<PlainMessage>> plain_messages(const Plan& plan, const RankPlan& rank_plan,
                                                      std::span<const std::uint32_t> rounds);

/// Seconds of the slowest rank for all of these messages by MPI_Isend and MPI_Irecv alone, two rounds under
/// way at once, from and into `ring`. Collective.
double plain_mpi_seconds(Control& control, const std::vector<std::vector<PlainMessage>>& rounds,
                         std::span<std::byte> ring);

}  // namespace weightcast
