#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/dtype.hpp"
#include "core/quantizer.hpp"

/// Quantised tensors as their formats define them, one element at a time. Only the arithmetic of a block
/// comes from the product, where golden vectors hold it; which elements share a scale, how planes are laid
/// out and what they are called is said here a second time.
namespace weightcast::naive {

/// What a format keeps of a matrix.
struct QuantFormat {
  std::int64_t block_rows = 1;  ///< under one scale; 0: all of the tensor's
  std::int64_t block_cols = 1;
  int codes_per_byte = 1;
  std::int64_t scale_bytes = 0;  ///< 0: there are no scales of blocks
  bool global = false;           ///< there is one scale over all
  DType codes = DType::kF8E4M3;
  DType scales = DType::kF32;
  const char* scales_suffix = "";
  const char* global_suffix = "";
};

QuantFormat format_of(QuantScheme scheme);

/// A quantised matrix before anything is packed or placed.
struct QuantizedTensor {
  QuantFormat format;  ///< with the blocks of this tensor: never 0
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::vector<std::uint8_t> codes;    ///< of each element
  std::vector<std::uint32_t> scales;  ///< of each block, as stored
  GlobalScale global;

  std::int64_t scale_rows() const { return (rows + format.block_rows - 1) / format.block_rows; }
  std::int64_t scale_cols() const { return (cols + format.block_cols - 1) / format.block_cols; }
  std::uint8_t code(std::int64_t row, std::int64_t col) const {
    return codes[static_cast<std::size_t>(row * cols + col)];
  }
  /// The scale of an element.
  std::uint32_t scale(std::int64_t row, std::int64_t col) const {
    return scales[static_cast<std::size_t>(row / format.block_rows * scale_cols() + col / format.block_cols)];
  }

  /// Bytes of the planes as checkpoints hold them, row by row.
  std::int64_t code_row_bytes() const { return (cols + format.codes_per_byte - 1) / format.codes_per_byte; }
  std::vector<std::byte> codes_plane() const;
  std::vector<std::byte> scales_plane() const;
};

/// The largest magnitude of bfloat16 values that are numbers.
float largest_magnitude(const std::vector<std::byte>& bf16);

/// `amax`: over all that share the scale of the tensor.
QuantizedTensor quantize_tensor(Quantizer quantizer, const std::vector<std::byte>& bf16, std::int64_t rows,
                                std::int64_t cols, float amax);

/// The value that an engine computes with.
float dequantized(Quantizer quantizer, const QuantizedTensor& tensor, std::int64_t row, std::int64_t col);

/// Where the byte-sized scale of row r, column c of [rows, cols] lies in tiles of 128 × 4 (LAYOUTS.md 3.5).
std::int64_t tile_offset(std::int64_t row, std::int64_t col, std::int64_t cols);

/// The row of [up ; gate] of 2·`half` rows that stands at row n of a w13 of TRT-LLM-gen; the row of down at
/// row n of its w2 (LAYOUTS.md 3.1 b, c, d).
std::int64_t trtllm_w13_row(std::int64_t n, std::int64_t half);
std::int64_t trtllm_w2_row(std::int64_t n);

/// A layout of experts and a scheme that its kernels read.
struct Taken {
  const char* moe_layout;
  QuantScheme scheme;
};

/// The pairs that tests run through.
const std::vector<Taken>& taken_pairs();

}  // namespace weightcast::naive
