#pragma once

#include <cstddef>
#include <cstdint>

#include "core/matrix_layout.hpp"
#include "core/quantizer.hpp"

namespace weightcast {

/// Where codes or scales go: a MatrixPlace with its address. Rows that lie a pitch apart have a layout, too,
/// whose last step is the pitch, so that nobody asks which of the two it is.
struct DevicePlace {
  std::int64_t address = 0;  ///< or bytes from the start of staging
  MatrixLayout layout = {};
  std::int64_t row = 0;
  std::int64_t byte = 0;
  std::uint32_t unit = 0;  ///< the widest store that everything in it is a multiple of; 0: it is nowhere
  bool staged = false;
};

/// A QuantMove with its addresses. What a thread needs first comes first.
struct DeviceQuantMove {
  std::int64_t values = 0;  ///< an address, or bytes from the start of staging
  std::int64_t pitch = 0;
  std::int32_t rows = 0;
  std::int32_t cols = 0;
  std::uint32_t tiles_of_row = 0;
  std::uint32_t scope = 0;
  bool staged = false;
  bool aligned = false;             ///< values can be read 16 bytes at once
  std::uint8_t scale_row_bits = 0;  ///< log2 of QuantMove::scale_rows
  std::uint8_t scale_bytes = 0;
  DevicePlace codes;
  DevicePlace scales;
  std::int64_t cols_before = 0;
  std::int64_t cols_behind = 0;
  // Of the digests: the first element of each plane.
  std::int64_t codes_row = 0;
  std::int64_t codes_col = 0;
  std::int64_t scales_row = 0;
  std::int64_t scales_col = 0;
  std::uint64_t codes_key = 0;
  std::uint64_t scales_key = 0;
};

/// The unit of work of a team of threads: a rectangle of one move.
struct QuantTile {
  std::uint32_t move = 0;
  std::uint32_t chunk = 0;  ///< group of rows × tiles_of_row + group of columns
};

/// The arguments of a launch.
struct QuantWork {
  const DeviceQuantMove* moves = nullptr;
  const QuantTile* tiles = nullptr;
  std::uint32_t count = 0;
  std::byte* staging = nullptr;
  const GlobalScale* scales = nullptr;
  std::uint64_t* digests = nullptr;  ///< of all moves
  float* largest = nullptr;          ///< of find_largest
};

/// The kernels of one quantiser, and how its moves are cut into tiles.
struct QuantKernels {
  using Kernel = void (*)(QuantWork);
  static constexpr int kThreads = 512;
  static constexpr int kTeams = 2;  ///< of a block, each with tiles of its own

  Quantizer quantizer;
  std::int64_t tile_rows = 0;
  std::int64_t tile_cols = 0;  ///< 0: whole rows
  Kernel run = nullptr;
  Kernel run_with_digests = nullptr;
  Kernel find_largest = nullptr;
};

// Each is compiled in a file of its own. Null for a quantiser of another scheme.
const QuantKernels* fp8_block_kernels(Quantizer quantizer);
const QuantKernels* fp8_kernels(Quantizer quantizer);
const QuantKernels* fp4_kernels(Quantizer quantizer);

}  // namespace weightcast
