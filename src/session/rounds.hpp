#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "plan/rank_plan.hpp"

namespace weightcast {

/// The rounds of a rank's buckets, where a rank's weights and parameters are the same memory
/// (plan/rebalance.hpp): what a rank sends in a round it has sent before it writes what it gets there.
/// Without rounds every bucket is written as soon as it has arrived. Buckets are numbered as in the rank
/// plan.
class Rounds {
 public:
  struct Range {
    std::size_t first = 0;
    std::size_t last = 0;  ///< one behind
  };

  Rounds() = default;
  /// `firsts`: the first bucket of the plan in each round, ascending; empty: there are none.
  Rounds(const RankPlan& rank_plan, std::span<const std::uint32_t> firsts);

  bool none() const { return ranges_.empty(); }

  /// The buckets of the round that bucket k is of. Not to be asked where there are none.
  Range of(std::size_t k) const { return ranges_[round_[k]]; }

 private:
  std::vector<Range> ranges_;
  std::vector<std::size_t> round_;  ///< by bucket
};

}  // namespace weightcast
