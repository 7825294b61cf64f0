#include "measure/plain_ways.hpp"

#include <algorithm>
#include <array>
#include <chrono>

#include "sys/mpi.hpp"

namespace weightcast {

std::vector<std::vector<PlainMessage>> plain_messages(const Plan& plan, const RankPlan& rank_plan,
                                                      std::span<const std::uint32_t> rounds) {
  std::vector<std::vector<PlainMessage>> messages(rounds.size());
  std::int64_t slot = 0;
  for (const RankBucket& mine : rank_plan.buckets) {
    const Bucket& bucket = plan.buckets[mine.bucket];
    if (!plan.travels(bucket)) continue;
    const auto peer = mine.root ? plan.destination_ranks(bucket.destinations).front()
                                : static_cast<std::int64_t>(bucket.root);
    const auto round = std::upper_bound(rounds.begin(), rounds.end(), mine.bucket) - rounds.begin() - 1;
    messages[static_cast<std::size_t>(round)].push_back(
        {static_cast<int>(peer), mine.root, slot * plan.slot_bytes, bucket.bytes});
    slot = (slot + 1) % plan.limits.buffers;
  }
  return messages;
}

double plain_mpi_seconds(Control& control, const std::vector<std::vector<PlainMessage>>& rounds,
                         std::span<std::byte> ring) {
  using Clock = std::chrono::steady_clock;
  std::array<std::vector<MPI_Request>, 2> requests;
  const auto finish = [&](std::vector<MPI_Request>& of_round) {
    for (MPI_Request& request : of_round) control.agreement.wait(request);
    of_round.clear();
  };
  control.agreement.together([] {});
  const auto start = Clock::now();
  for (std::size_t round = 0; round < rounds.size(); ++round) {
    std::vector<MPI_Request>& own = requests[round % 2];
    finish(own);
    constexpr int kTag = 11;
    for (const PlainMessage& message : rounds[round]) {
      std::byte* const data = ring.data() + message.offset;
      const int count = mpi_count(static_cast<std::size_t>(message.bytes));
      MPI_Request& request = own.emplace_back(MPI_REQUEST_NULL);
      if (message.send) {
        WEIGHTCAST_MPI(MPI_Isend(data, count, MPI_BYTE, message.peer, kTag, control.comm(), &request));
      } else {
        WEIGHTCAST_MPI(MPI_Irecv(data, count, MPI_BYTE, message.peer, kTag, control.comm(), &request));
      }
    }
  }
  for (std::vector<MPI_Request>& of_round : requests) finish(of_round);
  std::array<double, 1> slowest{std::chrono::duration<double>(Clock::now() - start).count()};
  control.agreement.maximum(std::span<double>(slowest));
  return slowest[0];
}

}  // namespace weightcast
