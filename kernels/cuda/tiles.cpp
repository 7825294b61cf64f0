#include "kernels/cuda/tiles.hpp"

#include <limits>

#include "core/error.hpp"

namespace weightcast {

namespace {

/// A move's rows as the device sees them: one when they lie one behind the other.
Chunking chunking_of(const Move& move) {
  return move.dense() ? Chunking(1, move.bytes())
                      : Chunking(move.rows, move.row_bytes, move.layout.transposed());
}

std::uint32_t chunk_number(std::int64_t number) {
  if (number >= Tile::kRun) throw InternalError("a move of more chunks than a tile can number");
  return static_cast<std::uint32_t>(number);
}

}  // namespace

void append_tiles(std::span<const Move> program, std::uint32_t first, std::vector<Tile>& tiles) {
  std::uint32_t run = 0;
  const auto end_run = [&](std::uint32_t end) {
    if (run > 0) tiles.push_back({first + end - run, Tile::kRun | run});
    run = 0;
  };
  for (std::uint32_t i = 0; i < program.size(); ++i) {
    if (program[i].bytes() == 0) {
      end_run(i);
      continue;
    }
    if (program[i].bytes() <= Tile::kSmallBytes) {
      if (++run == Tile::kMostMovesInRun) end_run(i + 1);
      continue;
    }
    end_run(i);
    const std::int64_t chunks = chunking_of(program[i]).count;
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) tiles.push_back({first + i, chunk_number(chunk)});
  }
  end_run(static_cast<std::uint32_t>(program.size()));
}

void append_tiles(std::span<const DigestBox> boxes, std::uint32_t first, std::vector<DigestTile>& tiles) {
  for (std::uint32_t i = 0; i < boxes.size(); ++i) {
    const Box& box = boxes[i].box;
    const bool swapped = swaps_axes(boxes[i]);
    const DigestCut cut(swapped ? box.cols : box.rows,
                        (swapped ? box.rows : box.cols) * boxes[i].element_bytes);
    for (std::int64_t chunk = 0; chunk < cut.count; ++chunk)
      tiles.push_back({first + i, chunk_number(chunk)});
  }
}

}  // namespace weightcast
