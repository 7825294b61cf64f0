#pragma once

#include <cstdint>

#include "core/matrix_layout.hpp"
#include "model/layouts/expert_matrices.hpp"

namespace weightcast {

// The orders of rows that the epilogues of TRT-LLM-gen kernels want, for rows `pitch` bytes apart.

/// Within blocks of 32, row o goes to `32·(o/32) + 8·(o%4) + (o%32)/4`. (FlashInfer's shuffle_matrix_a with
/// an epilogue tile of 128.)
MatrixLayout shuffled_rows(std::int64_t pitch);

/// The same of [up ; gate] after their rows were interleaved one by one: row i of up goes to
/// `32·(i/16) + 16·(i%2) + (i%16)/2`, row i of gate 8 rows behind it. (reorder_rows_for_gated_act_gemm before
/// shuffle_matrix_a.)
MatrixLayout shuffled_gated_rows(std::int64_t pitch);

/// Within blocks of 16, row o goes to `16·(o/16) + 8·(o%2) + (o%16)/2`. (shuffle_matrix_a with an epilogue
/// tile of 64.)
MatrixLayout shuffled_rows_of_16(std::int64_t pitch);

/// K is cut into blocks of 128 bytes: byte x of row n lies at `(x/128 · rows + n) · 128 + x%128`.
/// (FlashInfer's convert_to_block_layout, BlockMajorK.)
constexpr std::int64_t kKBlockBytes = 128;

/// A matrix, or w13 of two such halves, whose blocks of K hold rows in the order of `rows_of_block`, a layout
/// for rows 128 bytes apart: a slab [K/c, rows, c] with c elements in 128 bytes, zero behind K.
SlabLayout k_blocks(const MatrixLayout& rows_of_block, const PlaneMatrix& matrix, std::int64_t rows);

}  // namespace weightcast
