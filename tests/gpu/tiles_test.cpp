// How programs are cut for thread blocks. Needs no GPU.

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "kernels/cuda/tiles.hpp"

namespace weightcast {

namespace {

Move move_of(std::int64_t rows, std::int64_t row_bytes, std::int64_t gap) {
  Move move;
  move.rows = rows;
  move.row_bytes = row_bytes;
  move.pitch = row_bytes + gap;
  return move;
}

/// Bytes of the largest tile; expects every move that has bytes to be in tiles once and whole.
std::int64_t largest_tile(const std::vector<Move>& moves, const std::vector<Tile>& tiles,
                          std::uint32_t first) {
  std::vector<std::vector<std::uint32_t>> chunks(moves.size());
  std::vector<int> runs(moves.size(), 0);
  std::int64_t largest = 0;
  for (const Tile& tile : tiles) {
    const std::uint32_t move = tile.move - first;
    if ((tile.what & Tile::kRun) == 0) {
      chunks.at(move).push_back(tile.what);
      continue;
    }
    std::int64_t bytes = 0;
    for (std::uint32_t i = move; i < move + (tile.what & ~Tile::kRun); ++i) {
      ++runs.at(i);
      bytes += moves[i].bytes();
    }
    largest = std::max(largest, bytes);
  }
  for (std::size_t i = 0; i < moves.size(); ++i) {
    if (chunks[i].empty()) {
      EXPECT_EQ(runs[i], moves[i].bytes() == 0 ? 0 : 1) << i;
      continue;
    }
    EXPECT_EQ(runs[i], 0) << i;
    // Numbers from 0 on: the device finds the rows and bytes of each by Chunking.
    for (std::uint32_t chunk = 0; chunk < chunks[i].size(); ++chunk) EXPECT_EQ(chunks[i][chunk], chunk);
    const Chunking chunking =
        moves[i].dense() ? Chunking(1, moves[i].bytes()) : Chunking(moves[i].rows, moves[i].row_bytes);
    EXPECT_EQ(std::ssize(chunks[i]), chunking.count);
    largest = std::max(largest, std::min(Tile::kBytes, moves[i].bytes()));
  }
  return largest;
}

TEST(Tiles, OneHugeMoveAmongTenThousandTinyOnesIsCut) {
  std::vector<Move> moves(10'000, move_of(1, 16, 0));
  moves.insert(moves.begin() + 4321, move_of(1, std::int64_t{5} << 30, 0));
  constexpr std::uint32_t kFirst = 77;
  std::vector<Tile> tiles;
  append_tiles(std::span<const Move>(moves), kFirst, tiles);
  EXPECT_EQ(largest_tile(moves, tiles, kFirst), Tile::kBytes);
  EXPECT_EQ(std::ssize(tiles), (std::int64_t{5} << 30) / Tile::kBytes + (4321 + 63) / 64 + (5679 + 63) / 64);
}

TEST(Tiles, MovesOfAllSizes) {
  std::vector<Move> moves;
  for (const std::int64_t row_bytes : {0, 1, 15, 16, 4095, 4096, 4097, 65535, 65536, 65537, 200'000}) {
    for (const std::int64_t rows : {0, 1, 2, 100, 5000}) {
      for (const std::int64_t gap : {0, 48}) moves.push_back(move_of(rows, row_bytes, gap));
    }
  }
  std::vector<Tile> tiles;
  append_tiles(std::span<const Move>(moves), 0, tiles);
  EXPECT_LE(largest_tile(moves, tiles, 0), Tile::kSmallBytes * Tile::kMostMovesInRun);
}

TEST(Tiles, DigestTilesCoverTheirBox) {
  std::vector<DigestBox> boxes(3);
  boxes[0].box = {0, 1000, 0, 2048};
  boxes[0].element_bytes = 2;
  boxes[1].box = {5, 0, 0, 7};
  boxes[1].element_bytes = 4;
  boxes[2].box = {5, 1, 3, 1};
  boxes[2].element_bytes = 1;
  std::vector<DigestTile> tiles;
  append_tiles(std::span<const DigestBox>(boxes), 10, tiles);
  // 8 chunks of 128 rows × 8 strips of 512 bytes, none, and one.
  ASSERT_EQ(tiles.size(), 65);
  for (std::uint32_t i = 0; i < 64; ++i) {
    EXPECT_EQ(tiles[i].box, 10);
    EXPECT_EQ(tiles[i].chunk, i);
  }
  EXPECT_EQ(tiles[64].box, 12);
  EXPECT_EQ(tiles[64].chunk, 0);
}

}  // namespace

}  // namespace weightcast
