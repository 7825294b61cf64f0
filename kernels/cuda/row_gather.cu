#include "kernels/cuda/row_gather.hpp"
#include "sys/cuda.hpp"

namespace weightcast {

namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 8;
// Of 16 bytes each, in a block of K.
constexpr std::int64_t kUnitsOfBlock = 8;

/// A warp takes one row after the other, its threads units of 16 bytes, four under way at once.
__global__ void gather(StackedRows from, const std::int64_t* index, std::int64_t rows, uint4* to) {
  const std::int64_t units = from.row_bytes / std::int64_t{sizeof(uint4)};
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.y;
  for (std::int64_t row = std::int64_t{blockIdx.x} * blockDim.y + threadIdx.y; row < rows; row += step) {
    const std::int64_t source = index[row];
    const auto* const values = reinterpret_cast<const uint4*>(
        source < from.upper_rows ? from.upper + source * from.row_bytes
                                 : from.lower + (source - from.upper_rows) * from.row_bytes);
#pragma unroll 4
    for (std::int64_t unit = threadIdx.x; unit < units; unit += kWarp) to[row * units + unit] = values[unit];
  }
}

/// Likewise, so that rows are read in whole and written in blocks of 128 bytes.
__global__ void cut(const uint4* from, std::int64_t rows, std::int64_t units, uint4* to) {
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.y;
  for (std::int64_t row = std::int64_t{blockIdx.x} * blockDim.y + threadIdx.y; row < rows; row += step) {
#pragma unroll 4
    for (std::int64_t unit = threadIdx.x; unit < units; unit += kWarp) {
      const std::int64_t block = unit / kUnitsOfBlock;
      to[(block * rows + row) * kUnitsOfBlock + unit % kUnitsOfBlock] = from[row * units + unit];
    }
  }
}

unsigned grid(std::int64_t rows) {
  return static_cast<unsigned>((rows + kWarps - 1) / kWarps);
}

}  // namespace

void gather_rows(const StackedRows& from, const std::int64_t* index, std::int64_t rows, std::byte* to,
                 cudaStream_t stream) {
  if (rows == 0) return;
  gather<<<grid(rows), dim3(kWarp, kWarps), 0, stream>>>(from, index, rows, reinterpret_cast<uint4*>(to));
  WEIGHTCAST_CUDA(cudaGetLastError());
}

void cut_k_blocks(const std::byte* from, std::int64_t rows, std::int64_t row_bytes, std::byte* to,
                  cudaStream_t stream) {
  if (rows == 0) return;
  cut<<<grid(rows), dim3(kWarp, kWarps), 0, stream>>>(reinterpret_cast<const uint4*>(from), rows,
                                                      row_bytes / std::int64_t{sizeof(uint4)},
                                                      reinterpret_cast<uint4*>(to));
  WEIGHTCAST_CUDA(cudaGetLastError());
}

}  // namespace weightcast
