#include "session/thread_blocks.hpp"

#include <algorithm>
#include <array>
#include <numeric>
#include <span>

namespace weightcast {

namespace {

/// Bytes that bringing a bucket to its place reads and writes.
std::int64_t placing_bytes(const RankPlan& rank_plan, const RankBucket& bucket) {
  // What a layout has to place takes twice as long: kernels have half as much of it under way at once.
  constexpr std::int64_t kPlaced = 2;
  std::int64_t bytes = 0;
  for (std::uint32_t i = 0; i < bucket.moves; ++i) {
    const Move& move = rank_plan.moves[bucket.first_move + i];
    bytes += 2 * move.bytes() * (move.layout.plain() ? 1 : kPlaced);
  }
  return bytes;
}

}  // namespace

GpuWork gpu_work(const Plan& plan, const RankPlan& rank_plan) {
  GpuWork work;
  std::int64_t sent = 0;
  std::int64_t received = 0;
  for (const RankBucket& share : rank_plan.buckets) {
    const Bucket& bucket = plan.buckets[share.bucket];
    const bool travels = plan.travels(bucket);
    const auto segments = std::span(plan.segments).subspan(bucket.first_segment, bucket.segments);
    const std::int64_t values = std::accumulate(
        segments.begin(), segments.end(), std::int64_t{0}, [&](std::int64_t sum, const Segment& s) {
          return sum + s.box.area() * plan.wire[s.tensor].element_bytes;
        });
    if (share.root && travels) {
      sent += bucket.bytes;
      work.pack += values + bucket.bytes;
    }
    if (!share.destination) continue;
    if (!share.root) received += bucket.bytes;
    std::int64_t placed = placing_bytes(rank_plan, share);
    // Values that are quantised here are read, too.
    if (share.quants > 0) placed += values;
    (travels ? work.unpack : work.local) += placed;
    work.digest += bucket.bytes;
  }
  work.wire = std::max(sent, received);
  return work;
}

ThreadBlocks::ThreadBlocks(const GpuWork& work, int multiprocessors, int asked)
    : beside_transfers(asked), alone(4 * multiprocessors), asked_(asked), multiprocessors_(multiprocessors) {
  if (asked > 0) return;
  // As measured on H200 over NVLink (NV18): bytes that a block reads and writes in a second, and a link. Over
  // a slower link fewer blocks keep ahead; the least is enough there.
  constexpr double kBlockRate = 50e9;
  constexpr double kLinkRate = 370e9;
  // Kernels do not begin and end with the transfers.
  constexpr double kAhead = 1.5;
  // What a kernel of NCCL takes (transport/nccl_transport.cpp).
  constexpr int kOfNccl = 36;
  const std::array<std::int64_t, 4> kinds{work.pack, work.unpack, work.local, work.digest};
  const double wire_seconds = static_cast<double>(work.wire) / kLinkRate;
  const auto seconds = [](std::int64_t bytes) { return static_cast<double>(bytes) / kBlockRate; };
  const std::int64_t all = std::accumulate(kinds.begin(), kinds.end(), std::int64_t{0});
  if (seconds(all) >= wire_seconds * multiprocessors) {
    beside_transfers = alone;
    return;
  }
  const auto at_once =
      static_cast<int>(std::count_if(kinds.begin(), kinds.end(), [](auto k) { return k > 0; }));
  const int left = std::max(0, multiprocessors - kOfNccl) / std::max(1, at_once);
  const int least = std::max(1, std::min(multiprocessors / 4, left));
  const int most = std::max(least, multiprocessors / 2);
  const double ahead = kAhead * seconds(*std::max_element(kinds.begin(), kinds.end())) / wire_seconds;
  beside_transfers = std::clamp(static_cast<int>(ahead), least, most);
}

int ThreadBlocks::of_direct(std::size_t lanes, bool others) const {
  if (asked_ > 0) return asked_;
  // A block for each multiprocessor fills the link, all together, and leaves room for the kernels of others;
  // where there are none, two are a little faster, which is what fits.
  constexpr int kLeast = 16;
  return std::max(kLeast, (others ? 1 : 2) * multiprocessors_ / static_cast<int>(lanes));
}

}  // namespace weightcast
