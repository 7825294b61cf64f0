#pragma once

#include <cstdint>
#include <initializer_list>

#include "model/layouts/expert_matrices.hpp"
#include "model/layouts/row_digits.hpp"

namespace weightcast {

// Block scales of one byte as tensor cores of SM100 load them ("128x4"): in tiles of 128 rows × 4 columns,
// which are 512 bytes. The scale of row r and column c of C lies at
//   ((r/128) · (up(C,4)/4) + c/4) · 512 + (r%32) · 16 + ((r%128)/32) · 4 + c%4,
// with zeros in what rounds rows up to 128 and columns up to 4. (FlashInfer's block_scale_interleave,
// TensorRT-LLM's computeSFIndex; SGLang's swizzle_blockscale.)

constexpr std::int64_t kTileRows = 128;

/// Bytes of a tile between a row and the next of its 32, and between it and that of the next 32.
constexpr std::int64_t kTileRow = 16;
constexpr std::int64_t kTileQuarter = 4;

/// The slab of [up ; gate] whose rows were interleaved, so that 64 of each fill a tile, with rows of up as
/// `digits` say and those of gate `gate` bytes behind them: [2·up(rows,64), up(C,4)].
SlabLayout swizzled_interleaved(const PlaneMatrix& half, std::initializer_list<RowDigit> digits,
                                std::int64_t gate);

/// One matrix with its rows in another order: [up(rows,128), up(C,4)].
SlabLayout swizzled_in_order(const PlaneMatrix& matrix, std::initializer_list<RowDigit> digits);

/// Rows in their own order.
SlabLayout swizzled(const PlaneMatrix& matrix);

/// Those of [up ; gate], each half rounded up to 128 rows.
SlabLayout swizzled_up_first(const PlaneMatrix& half);

}  // namespace weightcast
