#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace weightcast {

/// Rows of one or two matrices, one above the other, in device memory. Addresses and `row_bytes` are
/// multiples of 16.
struct StackedRows {
  const std::byte* upper = nullptr;
  std::int64_t upper_rows = 0;
  const std::byte* lower = nullptr;  ///< may be null when no row is beyond the upper ones
  std::int64_t row_bytes = 0;
};

/// Row n of `to` becomes row index[n] (device) of `from`, in the order of the stream.
void gather_rows(const StackedRows& from, const std::int64_t* index, std::int64_t rows, std::byte* to,
                 cudaStream_t stream);

/// Cuts rows into blocks of 128 bytes: byte x of row n goes to (x/128 · rows + n) · 128 + x%128. `row_bytes`
/// is a multiple of 128, addresses are of 16.
void cut_k_blocks(const std::byte* from, std::int64_t rows, std::int64_t row_bytes, std::byte* to,
                  cudaStream_t stream);

}  // namespace weightcast
