#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

// The dispatch over instruction sets is internal to this file; the test includes it to reach every variant.
#include "kernels/digest.cpp"  // NOLINT(bugprone-suspicious-include)

namespace weightcast {

namespace {

using Bytes = std::vector<std::byte>;

Bytes random_bytes(std::int64_t count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  Bytes bytes(static_cast<std::size_t>(count));
  std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<std::byte>(random() >> 56); });
  return bytes;
}

/// The definition, `Σ row_key(r) · column_key(c) · bits(element)`, a byte at a time.
std::uint64_t naive_digest(const std::byte* data, std::int64_t pitch, const Box& box, std::int64_t element,
                           std::uint64_t key) {
  std::uint64_t sum = 0;
  for (std::int64_t row = 0; row < box.rows; ++row) {
    for (std::int64_t col = 0; col < box.cols; ++col) {
      std::uint64_t bits = 0;
      for (std::int64_t byte = 0; byte < element; ++byte) {
        bits |= std::to_integer<std::uint64_t>(data[row * pitch + col * element + byte]) << (8 * byte);
      }
      const std::uint64_t row_key =
          mix64(key + static_cast<std::uint64_t>(box.row + row) * 0x9e3779b97f4a7c15ull) | 1;
      // Single bytes lie in words of four.
      const std::int64_t word = element == 1 ? 4 : 1;
      const std::uint64_t column_key =
          (mix64(~key + static_cast<std::uint64_t>((box.col + col) / word) * 0xd1342543de82ef95ull) | 1)
          << (8 * ((box.col + col) % word));
      sum += row_key * column_key * bits;
    }
  }
  return sum;
}

class DigestOf : public ::testing::TestWithParam<std::int64_t> {
 protected:
  std::int64_t element() const { return GetParam(); }
};

TEST_P(DigestOf, IsTheDefinition) {
  const Bytes data = random_bytes(256 << 10, 1);
  std::mt19937_64 random(2);
  for (int round = 0; round < 60; ++round) {
    // Now and then around the number of columns whose keys are computed at once.
    const std::int64_t cols =
        (round % 6 == 0 ? kColumnsAtOnce - 35 : 1) + static_cast<std::int64_t>(random() % 70);
    const std::int64_t pitch = cols * element() + static_cast<std::int64_t>(random() % 50);
    const std::int64_t rows = 1 + static_cast<std::int64_t>(random() % 7);
    const Box box{static_cast<std::int64_t>(random() % 100'000), rows,
                  static_cast<std::int64_t>(random() % 100'000), cols};
    const std::uint64_t key = random();
    // Any start, aligned or not.
    const std::size_t start = random() % 32;
    ASSERT_LE(start + static_cast<std::size_t>(rows * pitch), data.size());
    const std::byte* at = data.data() + start;
    EXPECT_EQ(digest_box(at, pitch, box, element(), key), naive_digest(at, pitch, box, element(), key));
  }
  EXPECT_EQ(digest_box(data.data(), 0, {5, 0, 5, 7}, element(), 1), 0u);
  EXPECT_EQ(digest_box(data.data(), 0, {5, 7, 5, 0}, element(), 1), 0u);
}

TEST_P(DigestOf, AddsUpOverAnySplitInAnyOrder) {
  const Box whole{3, 40, 7, 90};
  const std::int64_t pitch = whole.cols * element();
  const Bytes data = random_bytes(whole.rows * pitch, 3);
  const std::uint64_t expected = digest_box(data.data(), pitch, whole, element(), 99);
  std::mt19937_64 random(4);
  for (int round = 0; round < 20; ++round) {
    std::vector<Box> pieces{whole};
    while (pieces.size() < 30) {
      const std::size_t pick = random() % pieces.size();
      Box first = pieces[pick];
      Box second = first;
      const bool by_rows = random() % 2 == 0;
      std::int64_t& count = by_rows ? first.rows : first.cols;
      if (count < 2) continue;
      const std::int64_t cut =
          1 + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(count - 1));
      (by_rows ? second.row : second.col) += cut;
      (by_rows ? second.rows : second.cols) -= cut;
      count = cut;
      pieces[pick] = first;
      pieces.push_back(second);
    }
    std::shuffle(pieces.begin(), pieces.end(), random);
    std::uint64_t sum = 0;
    for (const Box& piece : pieces) {
      const std::byte* at =
          data.data() + (piece.row - whole.row) * pitch + (piece.col - whole.col) * element();
      sum += digest_box(at, pitch, piece, element(), 99);
    }
    EXPECT_EQ(sum, expected);
  }
}

TEST_P(DigestOf, DoesNotDependOnTheLayout) {
  const Box box{11, 9, 5, 21};
  const std::int64_t row = box.cols * element();
  const Bytes dense = random_bytes(box.rows * row, 5);
  const std::uint64_t expected = digest_box(dense.data(), row, box, element(), 7);
  for (const std::int64_t gap : {1, 3, 64}) {
    Bytes wide(static_cast<std::size_t>(box.rows * (row + gap)), std::byte{0xee});
    for (std::int64_t r = 0; r < box.rows; ++r) {
      std::memcpy(wide.data() + r * (row + gap), dense.data() + r * row, static_cast<std::size_t>(row));
    }
    EXPECT_EQ(digest_box(wide.data(), row + gap, box, element(), 7), expected);
  }
}

TEST_P(DigestOf, NoticesEverySingleFlippedBit) {
  const Box box{1000, 30, 2000, 50};
  const std::int64_t pitch = box.cols * element();
  Bytes data = random_bytes(box.rows * pitch, 6);
  const std::uint64_t expected = digest_box(data.data(), pitch, box, element(), 1234);
  std::mt19937_64 random(7);
  for (int round = 0; round < 2000; ++round) {
    std::byte& byte = data[random() % data.size()];
    const auto mask = static_cast<std::byte>(1u << random() % 8);
    byte ^= mask;
    ASSERT_NE(digest_box(data.data(), pitch, box, element(), 1234), expected);
    byte ^= mask;
  }
  EXPECT_EQ(digest_box(data.data(), pitch, box, element(), 1234), expected);
}

TEST_P(DigestOf, NoticesSwappedElementsRowsAndTensors) {
  const Box box{0, 4, 0, 4};
  const std::int64_t pitch = box.cols * element();
  const Bytes data = random_bytes(box.rows * pitch, 8);
  const std::uint64_t expected = digest_box(data.data(), pitch, box, element(), 1);
  EXPECT_NE(digest_box(data.data(), pitch, box, element(), 2), expected);
  EXPECT_NE(digest_box(data.data(), pitch, {1, 4, 0, 4}, element(), 1), expected);
  EXPECT_NE(digest_box(data.data(), pitch, {0, 4, 1, 4}, element(), 1), expected);
  Bytes swapped = data;
  std::swap_ranges(swapped.begin(), swapped.begin() + pitch, swapped.begin() + pitch);
  EXPECT_NE(digest_box(swapped.data(), pitch, box, element(), 1), expected);
}

INSTANTIATE_TEST_SUITE_P(ElementBytes, DigestOf, ::testing::Values(1, 2, 4, 8));

TEST(Digest, RefusesOtherElementSizes) {
  const std::byte data{};
  EXPECT_THROW(digest_box(&data, 3, {0, 1, 0, 1}, 3, 0), std::logic_error);
}

template <typename Element>
void expect_variants_agree() {
  std::mt19937_64 random(9);
  std::vector<std::uint64_t> keys(300);
  std::generate(keys.begin(), keys.end(), std::ref(random));
  const Bytes data = random_bytes(3200, 10);
  for (std::int64_t count = 0; count <= 300; count += count < 70 ? 1 : 23) {
    for (const std::int64_t start : {0, 1, 3}) {
      const std::byte* at = data.data() + start;
      const std::uint64_t expected = dot<Element>(at, keys.data(), count);
      EXPECT_EQ(best_dot<Element>()(at, keys.data(), count), expected);
#ifdef __x86_64__
      if (__builtin_cpu_supports("avx2")) {
        EXPECT_EQ(dot_avx2<Element>(at, keys.data(), count), expected);
      }
      if (__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512vl")) {
        EXPECT_EQ(dot_avx512<Element>(at, keys.data(), count), expected);
      }
#endif
    }
  }
}

TEST(DigestDispatch, EveryInstructionSetGivesTheSameOnOddSizes) {
  expect_variants_agree<std::uint8_t>();
  expect_variants_agree<std::uint16_t>();
  expect_variants_agree<std::uint32_t>();
  expect_variants_agree<std::uint64_t>();
}

}  // namespace

}  // namespace weightcast
