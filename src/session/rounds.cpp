#include "session/rounds.hpp"

#include <algorithm>
#include <iterator>

namespace weightcast {

Rounds::Rounds(const RankPlan& rank_plan, std::span<const std::uint32_t> firsts) {
  if (firsts.empty()) return;
  std::uint32_t end = 0;  // of the round at hand, in the plan
  for (std::size_t k = 0; k < rank_plan.buckets.size(); ++k) {
    const std::uint32_t bucket = rank_plan.buckets[k].bucket;
    if (k == 0 || bucket >= end) {
      ranges_.push_back({k, k});
      const auto next = std::upper_bound(firsts.begin(), firsts.end(), bucket);
      end = next == firsts.end() ? ~std::uint32_t{0} : *next;
    }
    ranges_.back().last = k + 1;
    round_.push_back(ranges_.size() - 1);
  }
}

}  // namespace weightcast
