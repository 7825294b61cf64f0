#pragma once

#include <cstdint>
#include <vector>

#include "core/matrix_layout.hpp"
#include "model/layouts/moe_layout.hpp"

namespace weightcast {

/// The order of rows that the epilogue of TRT-LLM-gen kernels wants, for rows `pitch` bytes apart, within
/// blocks of 32: row o of a matrix goes to `32·(o/32) + 8·(o%4) + (o%32)/4`. (FlashInfer's shuffle_matrix_a
/// with an epilogue tile of 128.)
MatrixLayout shuffled_rows(std::int64_t pitch);

/// The same of [up ; gate] after their rows were interleaved one by one: row i of up goes to
/// `32·(i/16) + 16·(i%2) + (i%16)/2`, row i of gate 8 rows behind it. (reorder_rows_for_gated_act_gemm before
/// shuffle_matrix_a.)
MatrixLayout shuffled_gated_rows(std::int64_t pitch);

/// Appends a layer's experts in the BlockMajorK form for bf16, with the part I/T of a rank padded to Ip, a
/// multiple of `inner_unit`: w13 [El, H/64, 2·Ip, 64] and w2 [El, Ip/64, H, 64]. Rank t has
/// [t·Ip, (t+1)·Ip) of the inner size, zero from I on: the padded size is the stride. (FlashInfer's
/// convert_to_block_layout; SGLang's padding.)
void add_block_major_experts(const Catalog& catalog, const LocalExperts& experts, std::int64_t inner_unit,
                             std::vector<Parameter>& parameters);

}  // namespace weightcast
