#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/float_bits.hpp"
#include "core/hash.hpp"
#include "float16.hpp"
#include "model/synthetic.hpp"

namespace weightcast {

namespace {

template <typename T>
T load(const std::byte* at) {
  T value{};
  std::memcpy(&value, at, sizeof value);
  return value;
}

double value_at(const std::byte* at, DType dtype) {
  switch (dtype) {
    case DType::kBF16:
      return bf16_value(load<std::uint16_t>(at));
    case DType::kF16:
      return f16_value(load<std::uint16_t>(at));
    case DType::kF32:
      return load<float>(at);
    default:
      return load<double>(at);
  }
}

TEST(Synthetic, ValuesAreTheDocumentedHash) {
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32, DType::kF64}) {
    const Tensor tensor{"model.norm.weight", dtype, {100}};
    constexpr std::int64_t kVersion = 3;
    constexpr std::int64_t kFirst = 17;
    constexpr std::int64_t kCount = 40;
    std::vector<std::byte> bytes(static_cast<std::size_t>(kCount * dtype_bytes(dtype)));
    fill_synthetic(tensor, kVersion, kFirst, bytes);
    const std::uint64_t seed = hash_text(tensor.name) + kVersion * 0x9e3779b97f4a7c15ull;
    for (std::int64_t i = 0; i < kCount; ++i) {
      const auto hashed = static_cast<double>(mix64(seed + static_cast<std::uint64_t>(kFirst + i)) >> 48);
      const double expected = (hashed - 32768) / 1048576;
      const double value = value_at(bytes.data() + i * dtype_bytes(dtype), dtype);
      if (dtype == DType::kBF16) {
        EXPECT_EQ(value, bf16_value(bf16_bits(static_cast<float>(expected))));
      } else if (dtype == DType::kF16) {
        // Half a unit of the last place of a half below 2^-5.
        EXPECT_NEAR(value, expected, 0x1p-17);
      } else {
        EXPECT_EQ(value, expected);
      }
    }
  }
}

TEST(Synthetic, PiecesAgreeWithTheWholeAndVersionsDiffer) {
  for (const DTypeInfo& info : dtype_table()) {
    const Tensor tensor{"t", info.dtype, {64}};
    const auto fill = [&](std::int64_t version, std::int64_t first, std::int64_t count) {
      std::vector<std::byte> bytes(static_cast<std::size_t>(count * info.bytes));
      fill_synthetic(tensor, version, first, bytes);
      return bytes;
    };
    const auto whole = fill(0, 0, 64);
    const auto piece = fill(0, 24, 40);
    EXPECT_TRUE(std::equal(piece.begin(), piece.end(), whole.begin() + 24 * info.bytes)) << info.name;
    EXPECT_NE(whole, fill(1, 0, 64)) << info.name;
  }
}

}  // namespace

}  // namespace weightcast
