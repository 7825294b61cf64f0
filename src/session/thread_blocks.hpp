#pragma once

#include <cstddef>
#include <cstdint>

#include "plan/plan.hpp"
#include "plan/rank_plan.hpp"

namespace weightcast {

/// What a rank's GPU has to do in an update, in bytes. Kernels of each kind run in a stream of their own, so
/// that all kinds may run at once; what they read and write is counted as what a plain copy would take as
/// long for.
struct GpuWork {
  std::int64_t wire = 0;    ///< sent or received, whichever is more
  std::int64_t pack = 0;    ///< of what is sent
  std::int64_t unpack = 0;  ///< of what arrives
  std::int64_t local = 0;   ///< of what the rank hands to itself
  std::int64_t digest = 0;  ///< read of what was written
};

GpuWork gpu_work(const Plan& plan, const RankPlan& rank_plan);

/// Most thread blocks that a kernel has: beside transfers, enough to keep ahead of them and few enough to
/// leave NCCL's own kernels their multiprocessors; alone, as many as the device holds at once. Where
/// transfers end long before the kernels, these have the whole device all the time.
struct ThreadBlocks {
  /// `asked` blocks beside transfers; 0: what `work` takes.
  ThreadBlocks(const GpuWork& work, int multiprocessors, int asked);

  int beside_transfers = 0;
  int alone = 0;

  /// Of each kernel that writes into other ranks' parameters, of which `lanes` run at once; `others`: kernels
  /// of other kinds may run beside them.
  int of_direct(std::size_t lanes, bool others) const;

 private:
  int asked_ = 0;
  int multiprocessors_ = 0;
};

}  // namespace weightcast
