#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/executor.hpp"
#include "kernels/move.hpp"

namespace weightcast {

/// The unit of work of a thread block: a chunk of one move, or a run of small moves, a warp each. Tiles of a
/// program cost about the same whether it is one huge move or ten thousand tiny ones, so that blocks which
/// take every n-th tile end together.
struct Tile {
  static constexpr std::uint32_t kRun = 1u << 31;
  /// Staging bytes of a chunk.
  static constexpr std::int64_t kBytes = 64 << 10;
  /// A move of at most this many bytes is small enough for one warp.
  static constexpr std::int64_t kSmallBytes = 4 << 10;
  static constexpr std::uint32_t kMostMovesInRun = 64;

  std::uint32_t move = 0;  ///< the (first) move
  std::uint32_t what = 0;  ///< number of the chunk, or kRun | count of moves
};

/// How `rows` rows of `row_bytes` bytes are cut into chunks: groups of whole rows, or parts of a row that is
/// larger than a chunk. Of a transposed matrix a chunk is a block of rows and columns, so that runs of both
/// sides are long.
struct Chunking {
  static constexpr std::int64_t kTransposedRows = 128;

  std::int64_t rows_each = 1;
  std::int64_t part_bytes = Tile::kBytes;  ///< of a row
  std::int64_t parts_of_row = 1;
  std::int64_t count = 0;

  constexpr Chunking(std::int64_t rows, std::int64_t row_bytes, bool transposed = false)
      : rows_each(transposed                 ? kTransposedRows
                  : row_bytes < Tile::kBytes ? Tile::kBytes / row_bytes
                                             : 1),
        part_bytes(transposed ? Tile::kBytes / kTransposedRows : Tile::kBytes),
        parts_of_row((row_bytes + part_bytes - 1) / part_bytes),
        count((rows + rows_each - 1) / rows_each * parts_of_row) {}
};

/// Whether a digest is computed with rows and columns in each other's place: the elements of a column lie
/// together. Not those of one byte, whose columns have a word in common.
inline bool swaps_axes(const DigestBox& box) {
  return box.element_bytes > 1 && box.layout.transposed() && box.layout.unit_bytes() == box.element_bytes;
}

/// Appends the tiles of `program`; its first move has number `first`.
void append_tiles(std::span<const Move> program, std::uint32_t first, std::vector<Tile>& tiles);

/// How a box of `rows` rows of `row_bytes` bytes is cut for warps that compute digests: into strips of
/// columns, about equally wide, of some rows.
struct DigestCut {
  static constexpr std::int64_t kUnitBytes = 64;  ///< strips are a multiple of that wide
  static constexpr std::int64_t kStripBytes = 256;
  static constexpr std::int64_t kUnitRows = 32;
  static constexpr std::int64_t kRows = 256;

  std::int64_t strips = 0;
  std::int64_t strip_bytes = kUnitBytes;
  std::int64_t rows_each = kUnitRows;
  std::int64_t count = 0;  ///< chunks: of rows × strips

  constexpr DigestCut() = default;
  constexpr DigestCut(std::int64_t rows, std::int64_t row_bytes) {
    if (rows == 0 || row_bytes == 0) return;
    const auto parts = [](std::int64_t whole, std::int64_t most) { return (whole + most - 1) / most; };
    const std::int64_t units = parts(row_bytes, kUnitBytes);
    strip_bytes = parts(units, parts(row_bytes, kStripBytes)) * kUnitBytes;
    strips = parts(row_bytes, strip_bytes);
    const std::int64_t row_units = parts(rows, kUnitRows);
    rows_each = parts(row_units, parts(rows, kRows)) * kUnitRows;
    count = parts(rows, rows_each) * strips;
  }
};

/// The unit of work of a warp that computes digests.
struct DigestTile {
  std::uint32_t box = 0;
  std::uint32_t chunk = 0;  ///< row chunk × strips + strip
};

/// Appends the tiles of `boxes`; the first has number `first`.
void append_tiles(std::span<const DigestBox> boxes, std::uint32_t first, std::vector<DigestTile>& tiles);

}  // namespace weightcast
