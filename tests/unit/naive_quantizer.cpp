#include "naive_quantizer.hpp"

#include <bit>
#include <cmath>
#include <cstring>

namespace weightcast::naive {

namespace {

std::uint16_t bits_of(const std::vector<std::byte>& bf16, std::int64_t i) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, bf16.data() + 2 * i, 2);
  return bits;
}

float value_of(const std::vector<std::byte>& bf16, std::int64_t i) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits_of(bf16, i)) << 16);
}

float larger_magnitude(float largest, float value) {
  return std::isnan(value) ? largest : std::fmax(largest, std::fabs(value));
}

}  // namespace

QuantFormat format_of(QuantScheme scheme) {
  switch (scheme) {
    case QuantScheme::kFp8Block:
      return {128, 128, 1, 4, false, DType::kF8E4M3, DType::kF32, "_scale_inv", ""};
    case QuantScheme::kFp8Tensor:
      return {0, 0, 1, 0, true, DType::kF8E4M3, DType::kF32, "", "_scale"};
    case QuantScheme::kFp8Channel:
      return {1, 0, 1, 4, false, DType::kF8E4M3, DType::kF32, "_scale", ""};
    case QuantScheme::kMxfp8:
      return {1, 32, 1, 1, false, DType::kF8E4M3, DType::kF8E8M0, "_scale", ""};
    case QuantScheme::kNvfp4:
      return {1, 16, 2, 1, true, DType::kF4E2M1x2, DType::kF8E4M3, "_scale", "_scale_2"};
    case QuantScheme::kMxfp4:
      return {1, 32, 2, 1, false, DType::kF4E2M1x2, DType::kF8E8M0, "_scale", ""};
  }
  return {};
}

std::vector<std::byte> QuantizedTensor::codes_plane() const {
  std::vector<std::byte> plane(static_cast<std::size_t>(rows * code_row_bytes()));
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t col = 0; col < cols; ++col) {
      const std::int64_t byte = row * code_row_bytes() + col / format.codes_per_byte;
      // Of two codes in a byte the one of the even column is in the lower half.
      const int shift = format.codes_per_byte == 2 && col % 2 == 1 ? 4 : 0;
      plane[static_cast<std::size_t>(byte)] |= static_cast<std::byte>(code(row, col) << shift);
    }
  }
  return plane;
}

std::vector<std::byte> QuantizedTensor::scales_plane() const {
  const auto each = static_cast<std::size_t>(format.scale_bytes);
  std::vector<std::byte> plane(each == 0 ? 0 : scales.size() * each);
  for (std::size_t i = 0; i * each < plane.size(); ++i)
    std::memcpy(plane.data() + i * each, &scales[i], each);
  return plane;
}

float largest_magnitude(const std::vector<std::byte>& bf16) {
  float largest = 0;
  const auto count = static_cast<std::int64_t>(bf16.size() / 2);
  for (std::int64_t i = 0; i < count; ++i) largest = larger_magnitude(largest, value_of(bf16, i));
  return largest;
}

QuantizedTensor quantize_tensor(Quantizer quantizer, const std::vector<std::byte>& bf16, std::int64_t rows,
                                std::int64_t cols, float amax) {
  QuantizedTensor tensor{format_of(quantizer.scheme), rows, cols, {}, {}, global_scale(quantizer, amax)};
  QuantFormat& format = tensor.format;
  if (format.block_rows == 0) format.block_rows = rows;
  if (format.block_cols == 0) format.block_cols = cols;
  std::vector<float> largest(static_cast<std::size_t>(tensor.scale_rows() * tensor.scale_cols()), 0.0f);
  const auto block_of = [&](std::int64_t i) {
    return static_cast<std::size_t>(i / cols / format.block_rows * tensor.scale_cols() +
                                    i % cols / format.block_cols);
  };
  for (std::int64_t i = 0; i < rows * cols; ++i) {
    float& of_block = largest[block_of(i)];
    of_block = larger_magnitude(of_block, value_of(bf16, i));
  }
  std::vector<BlockScale> scales;
  for (const float of_block : largest) {
    scales.push_back(block_scale(quantizer, of_block, tensor.global));
    tensor.scales.push_back(scales.back().stored);
  }
  for (std::int64_t i = 0; i < rows * cols; ++i) {
    tensor.codes.push_back(encode(quantizer, value_of(bf16, i), scales[block_of(i)]));
  }
  return tensor;
}

float dequantized(Quantizer quantizer, const QuantizedTensor& tensor, std::int64_t row, std::int64_t col) {
  return decode(quantizer, tensor.code(row, col), tensor.scale(row, col), tensor.global.stored);
}

std::int64_t tile_offset(std::int64_t row, std::int64_t col, std::int64_t cols) {
  const std::int64_t tiles_in_a_row = (cols + 3) / 4;
  return (row / 128 * tiles_in_a_row + col / 4) * 512 + row % 32 * 16 + row % 128 / 32 * 4 + col % 4;
}

std::int64_t trtllm_w2_row(std::int64_t n) {
  const std::int64_t q = n % 32;
  return 32 * (n / 32) + 4 * (q % 8) + q / 8;
}

std::int64_t trtllm_w13_row(std::int64_t n, std::int64_t half) {
  const std::int64_t p = trtllm_w2_row(n);
  return p / 2 + p % 2 * half;
}

const std::vector<Taken>& taken_pairs() {
  using enum QuantScheme;
  static const std::vector<Taken> pairs{
      {"triton", kFp8Block},  {"triton", kFp8Tensor},  {"triton", kFp8Channel},  {"triton", kMxfp8},
      {"cutlass", kFp8Block}, {"cutlass", kFp8Tensor}, {"cutlass", kFp8Channel}, {"cutlass", kMxfp8},
      {"cutlass", kNvfp4},    {"cutlass", kMxfp4},     {"trtllm", kFp8Block},    {"trtllm", kFp8Tensor},
      {"trtllm", kMxfp8},     {"trtllm", kNvfp4},      {"trtllm", kMxfp4},
  };
  return pairs;
}

}  // namespace weightcast::naive
