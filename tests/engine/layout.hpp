#pragma once

#include <cstdint>
#include <vector>

#include "engine/group.hpp"

namespace weightcast::engine {

/// Which part of the model a rank holds. Within a replica, tp rank = ep rank × (tp / ep) + rank inside the
/// expert.
struct RankLayout {
  std::int64_t tp_rank = 0;
  std::int64_t tp_size = 1;
  std::int64_t ep_rank = 0;
  std::int64_t ep_size = 1;
  bool up_first =
      false;  ///< order of the halves of `w13_weight`: cutlass has up first, triton has gate first
  std::int64_t inner_unit = 1;  ///< to a multiple of which a rank's part of experts is padded
  /// By layer the expert in each slot of all ranks; empty: slot e holds expert e.
  std::vector<std::vector<std::int64_t>> experts_of_slots = {};
};

/// `total` things for each of `parts` ranks. Throws InputError naming what they are when they cannot be cut
/// so.
std::int64_t divide(std::int64_t total, std::int64_t parts, const char* what);

/// Throws InputError unless the layout is that of this rank of the group.
void check_layout(const RankLayout& layout, const Group& group);

}  // namespace weightcast::engine
