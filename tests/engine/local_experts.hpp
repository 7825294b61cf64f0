#pragma once

#include <cstdint>
#include <vector>

#include "engine/layout.hpp"

namespace weightcast::engine {

/// Which of a layer's experts sit in a rank's slots, and which rank computes what: of an expert with several
/// copies each has its turn, token by token, so that what is computed depends on all of them.
class LocalExperts {
 public:
  /// Throws InputError for slots that the layout does not divide, and for an expert without one.
  LocalExperts(const RankLayout& layout, std::int64_t layer, std::int64_t experts);

  /// How many slots the rank has.
  std::int64_t count() const { return count_; }

  /// The rank's slot in which that token's expert is computed; -1: another rank computes it.
  std::int64_t slot_for(std::int64_t expert, std::int64_t token) const;

 private:
  std::int64_t first_ = 0;  ///< of the rank's slots
  std::int64_t count_ = 0;
  std::vector<std::vector<std::int64_t>> slots_of_experts_;
};

}  // namespace weightcast::engine
