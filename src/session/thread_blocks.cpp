#include "session/thread_blocks.hpp"

#include <algorithm>
#include <span>

namespace weightcast {

GpuWork gpu_work(const Plan& plan, const RankPlan& rank_plan) {
  GpuWork work;
  std::int64_t sent = 0;
  std::int64_t received = 0;
  for (const RankBucket& share : rank_plan.buckets) {
    const Bucket& bucket = plan.buckets[share.bucket];
    const bool travels = plan.travels(bucket);
    if (share.root && travels) {
      sent += bucket.bytes;
      work.kernel_bytes += bucket.bytes;
      for (const Segment& segment : std::span(plan.segments).subspan(bucket.first_segment, bucket.segments)) {
        work.kernel_bytes += segment.box.area() * plan.wire[segment.tensor].element_bytes;
      }
    }
    if (!share.destination) continue;
    if (!share.root) received += bucket.bytes;
    // Read where it has arrived, written, and read for its digest.
    work.kernel_bytes += 3 * bucket.bytes;
  }
  work.wire_bytes = std::max(sent, received);
  return work;
}

ThreadBlocks::ThreadBlocks(const GpuWork& work, int multiprocessors, int asked)
    : beside_transfers(asked), alone(4 * multiprocessors) {
  if (asked > 0) return;
  // As measured on H200 over NVLink (NV18): bytes that a block reads and writes in a second, and a link. Over
  // a slower link fewer blocks keep ahead; the least is enough there.
  constexpr double kBlockRate = 50e9;
  constexpr double kLinkRate = 370e9;
  // They do not begin and end with the transfers.
  constexpr double kAhead = 1.25;
  const int least = std::max(1, multiprocessors / 4);
  const int most = std::max(1, multiprocessors / 2);
  const double wire_seconds = static_cast<double>(work.wire_bytes) / kLinkRate;
  const double block_seconds = static_cast<double>(work.kernel_bytes) / kBlockRate;
  if (block_seconds >= wire_seconds * multiprocessors) {
    beside_transfers = alone;
    return;
  }
  beside_transfers = std::clamp(static_cast<int>(kAhead * block_seconds / wire_seconds), least, most);
}

}  // namespace weightcast
