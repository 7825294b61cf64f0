#include "kernels/cuda/cuda_digests.hpp"

#include <cstdint>

#include "core/float_bits.hpp"
#include "core/negated_exp.hpp"
#include "kernels/cuda/common_unit.hpp"
#include "kernels/cuda/dot.hpp"
#include "kernels/cuda/launches.hpp"
#include "kernels/digest.hpp"

namespace weightcast {

struct DeviceBox {
  const std::byte* address;
  std::int64_t pitch;
  Box box;
  // Of rows and of columns (digest_key).
  std::uint64_t row_base;
  std::uint64_t row_factor;
  std::uint64_t column_base;
  std::uint64_t column_factor;
  std::int64_t element_bytes;
  MatrixLayout layout;
  std::int64_t row;
  std::int64_t byte;
  std::uint32_t unit;  ///< as of a move
  bool negated_exp;    ///< as of a DigestBox
};

namespace {

/// The part of a box's digest that belongs to one strip of columns and some rows; every lane has its share.
template <typename Element>
__device__ std::uint64_t digest_strip(const DeviceBox& box, std::int64_t first_row, std::int64_t rows,
                                      std::int64_t strip, int lane) {
  constexpr int kElements = 16 / sizeof(Element);
  constexpr int kAtOnce = 8;
  const std::int64_t col = (strip * kWarp + lane) * kElements;
  const int valid = static_cast<int>(max(std::int64_t{0}, min(std::int64_t{kElements}, box.box.cols - col)));
  Dot<Element, kElements> dot;
#pragma unroll
  for (int j = 0; j < kElements; ++j) {
    const std::int64_t column = box.box.col + col + j;
    std::uint64_t key = 0;
    if constexpr (sizeof(Element) == 1) {
      key = digest_key(box.column_base, box.column_factor, column / 4) << (8 * (column % 4));
    } else {
      key = digest_key(box.column_base, box.column_factor, column);
    }
    dot.set_key(j, j < valid ? key : 0);
  }
  const std::int64_t col_byte = col * static_cast<std::int64_t>(sizeof(Element));
  const bool plain = box.layout.plain();
  const std::byte* data = plain ? box.address + first_row * box.pitch + col_byte
                                : box.address + box.layout.byte_offset(box.byte + col_byte);
  const auto row_of = [&](std::int64_t row) {
    return data + (plain ? row * box.pitch : box.layout.row_offset(box.row + first_row + row));
  };
  const bool aligned = valid == kElements && box.unit == 16;
  std::uint64_t sum = 0;
  for (std::int64_t batch = 0; batch < rows; batch += kWarp) {
    const std::uint64_t own_row_key =
        digest_key(box.row_base, box.row_factor, box.box.row + first_row + batch + lane);
    const int count = static_cast<int>(min(std::int64_t{kWarp}, rows - batch));
    for (int start = 0; start < count; start += kAtOnce) {
      union {
        uint4 vector;
        Element elements[kElements];
      } values[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        values[i].vector = uint4{0, 0, 0, 0};
        if (start + i >= count) continue;
        const std::byte* at = row_of(batch + start + i);
        if (aligned) {
          values[i].vector = __ldcs(reinterpret_cast<const uint4*>(at));
        } else {
#pragma unroll
          for (int j = 0; j < kElements; ++j) {
            if (j >= valid) continue;
            Element element = 0;
            // Byte by byte: the address may be that of any byte.
            const std::int64_t next =
                plain ? j * static_cast<std::int64_t>(sizeof(Element))
                      : box.layout.byte_offset(box.byte + col_byte +
                                               j * static_cast<std::int64_t>(sizeof(Element))) -
                            box.layout.byte_offset(box.byte + col_byte);
            memcpy(&element, at + next, sizeof(Element));
            values[i].elements[j] = element;
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        // Rows behind the last have no elements: their dot is zero.
        sum += dot.of(values[i].elements) * __shfl_sync(~0u, own_row_key, start + i);
      }
    }
  }
  return sum;
}

/// The same of −e^x in float32 of the elements, which are float32 or bfloat16, without a layout. There are
/// few of them in a model: one after the other.
__device__ std::uint64_t digest_negated_exp(const DeviceBox& box, std::int64_t first_row, std::int64_t rows,
                                            std::int64_t strip, int lane) {
  const std::int64_t elements = 16 / box.element_bytes;
  const std::int64_t first = (strip * kWarp + lane) * elements;
  const std::int64_t end = min(first + elements, box.box.cols);
  std::uint64_t sum = 0;
  for (std::int64_t row = first_row; row < first_row + rows; ++row) {
    std::uint64_t dot = 0;
    for (std::int64_t col = first; col < end; ++col) {
      const std::byte* const at = box.address + row * box.pitch + col * box.element_bytes;
      float value = 0;
      if (box.element_bytes == 2) {
        std::uint16_t bits;
        memcpy(&bits, at, 2);
        value = bf16_value(bits);
      } else {
        memcpy(&value, at, 4);
      }
      dot += digest_key(box.column_base, box.column_factor, box.box.col + col) * negated_exp_bits(value);
    }
    sum += dot * digest_key(box.row_base, box.row_factor, box.box.row + row);
  }
  return sum;
}

__global__ void __launch_bounds__(kThreads) run_digests(const DeviceBox* boxes, const DigestTile* tiles,
                                                        std::uint32_t count, std::uint64_t* results) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::uint32_t warps = gridDim.x * (blockDim.x / kWarp);
  for (std::uint32_t t = blockIdx.x * (blockDim.x / kWarp) + threadIdx.x / kWarp; t < count; t += warps) {
    const DigestTile tile = tiles[t];
    const DeviceBox& box = boxes[tile.box];
    const auto strips = static_cast<std::uint32_t>(DigestTile::strips(box.box.cols, box.element_bytes));
    const std::int64_t first_row = std::int64_t{tile.chunk / strips} * DigestTile::kRows;
    const std::int64_t rows = min(DigestTile::kRows, box.box.rows - first_row);
    const std::int64_t strip = tile.chunk % strips;
    std::uint64_t sum = 0;
    switch (box.negated_exp ? 0 : box.element_bytes) {
      case 0:
        sum = digest_negated_exp(box, first_row, rows, strip, lane);
        break;
      case 1:
        sum = digest_strip<std::uint8_t>(box, first_row, rows, strip, lane);
        break;
      case 2:
        sum = digest_strip<std::uint16_t>(box, first_row, rows, strip, lane);
        break;
      case 4:
        sum = digest_strip<std::uint32_t>(box, first_row, rows, strip, lane);
        break;
      default:
        sum = digest_strip<std::uint64_t>(box, first_row, rows, strip, lane);
        break;
    }
    for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_down_sync(~0u, sum, step);
    if (lane == 0) {
      atomicAdd(reinterpret_cast<unsigned long long*>(results + tile.box),
                static_cast<unsigned long long>(sum));
    }
  }
}

}  // namespace

CudaDigestPrograms::CudaDigestPrograms(std::span<const DigestBox> boxes,
                                       std::span<const ProgramRange> programs,
                                       std::span<std::byte* const> buffers) {
  std::vector<DeviceBox> resolved;
  resolved.reserve(boxes.size());
  for (const DigestBox& box : boxes) {
    const std::byte* address = buffers[box.buffer] + box.offset;
    if (swaps_axes(box)) {
      address += box.layout.row_offset(box.row) + box.layout.byte_offset(box.byte);
      const Box axes{box.box.col, box.box.cols, box.box.row, box.box.rows};
      resolved.push_back({address,
                          box.layout.unit_step,
                          axes,
                          ~box.tensor_key,
                          kDigestColumnFactor,
                          box.tensor_key,
                          kDigestRowFactor,
                          box.element_bytes,
                          {},
                          0,
                          0,
                          common_unit(address, {box.layout.unit_step}),
                          box.negated_exp});
      continue;
    }
    const std::uint32_t unit = box.layout.plain() ? common_unit(address, {box.pitch})
                                                  : common_unit(address, {box.byte, all_steps(box.layout)});
    const bool words = consists_of_words(box.box, box.element_bytes, box.layout, box.byte);
    resolved.push_back({address, box.pitch, words ? in_words(box.box) : box.box, box.tensor_key,
                        kDigestRowFactor, ~box.tensor_key, kDigestColumnFactor,
                        words ? std::int64_t{4} : box.element_bytes, box.layout, box.row, box.byte, unit,
                        box.negated_exp});
  }
  boxes_ = DeviceArray<DeviceBox>(std::span<const DeviceBox>(resolved));
  const std::vector<DigestTile> tiles = tile_all<DigestTile>(boxes, programs, launches_);
  tiles_ = DeviceArray<DigestTile>(std::span<const DigestTile>(tiles));
}

void CudaDigestPrograms::run(std::size_t program, std::uint64_t* results, int blocks,
                             cudaStream_t stream) const {
  const ProgramRange& launch = launches_[program];
  if (launch.count == 0) return;
  constexpr std::uint32_t kWarps = kThreads / kWarp;
  run_digests<<<grid((launch.count + kWarps - 1) / kWarps, blocks), kThreads, 0, stream>>>(
      boxes_.data(), tiles_.data() + launch.first, launch.count, results);
  WEIGHTCAST_CUDA(cudaGetLastError());
}

}  // namespace weightcast
