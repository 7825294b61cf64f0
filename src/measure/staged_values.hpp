#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/executor.hpp"
#include "memory/host_buffer.hpp"
#include "model/catalog.hpp"
#include "plan/plan.hpp"
#include "plan/rank_plan.hpp"
#include "sys/thread_pool.hpp"

namespace weightcast {

/// The values of a plan of one bucket as they lie in staging, synthetic and in host memory, and all that
/// follows from them, computed by the host whatever the device is.
class StagedValues {
 public:
  /// `pool` does the work and must outlive them.
  explicit StagedValues(ThreadPool& pool);

  /// Makes them those of `plan`, unless they are that already. InternalError when it has not one bucket.
  void fill(const Plan& plan, const Catalog& catalog);

  std::span<const std::byte> bytes() const { return memory_.span(); }

  /// The scales of the plan's scopes; `rank_plan` is that of the rank that quantises.
  std::vector<GlobalScale> scales(const Plan& plan, const RankPlan& rank_plan) const;

  /// The plan's digests, as they must be found in the parameters.
  std::vector<std::uint64_t> digests(const Plan& plan, const Catalog& catalog, const RankPlan& rank_plan,
                                     std::span<const GlobalScale> scales) const;

 private:
  ThreadPool& pool_;
  std::unique_ptr<Executor> executor_;
  std::vector<Segment> segments_;
  HostBuffer memory_;
};

}  // namespace weightcast
