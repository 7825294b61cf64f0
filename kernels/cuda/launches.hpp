#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/tiles.hpp"
#include "kernels/move.hpp"

namespace weightcast {

// What the kernels of moves and of digests have in common.

inline constexpr int kThreads = 512;  ///< of a block
inline constexpr int kWarp = 32;

/// Blocks for `work` tiles, `blocks` at most.
inline int grid(std::uint32_t work, int blocks) {
  return static_cast<int>(std::min<std::uint32_t>(work, static_cast<std::uint32_t>(std::max(1, blocks))));
}

/// The tiles of all programs, and of which of them each launch consists.
template <typename TileType, typename Entry>
std::vector<TileType> tile_all(std::span<const Entry> entries, std::span<const ProgramRange> programs,
                               std::vector<ProgramRange>& launches) {
  std::vector<TileType> tiles;
  for (const ProgramRange& program : programs) {
    const auto first = static_cast<std::uint32_t>(tiles.size());
    append_tiles(entries.subspan(program.first, program.count), program.first, tiles);
    launches.push_back({first, static_cast<std::uint32_t>(tiles.size()) - first});
  }
  return tiles;
}

}  // namespace weightcast
