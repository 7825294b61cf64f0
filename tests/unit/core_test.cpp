#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <new>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <system_error>

#include "core/dtype.hpp"
#include "core/error.hpp"
#include "core/float_bits.hpp"
#include "core/hash.hpp"
#include "core/negated_exp.hpp"
#include "core/one_more.hpp"
#include "core/shape.hpp"
#include "core/units.hpp"
#include "float16.hpp"

namespace weightcast {

namespace {

TEST(DTypes, TableIsInTheOrderOfTheEnumeration) {
  for (std::size_t i = 0; i < dtype_table().size(); ++i) {
    EXPECT_EQ(static_cast<std::size_t>(dtype_table().at(i).dtype), i);
  }
}

TEST(DTypes, NamesAreDistinctAndLeadBack) {
  std::set<std::string_view> names;
  std::set<std::string_view> safetensors;
  for (const DTypeInfo& info : dtype_table()) {
    EXPECT_TRUE(names.insert(info.name).second) << info.name;
    EXPECT_TRUE(safetensors.insert(info.safetensors).second) << info.safetensors;
    EXPECT_EQ(dtype_from_name(dtype_name(info.dtype)), info.dtype);
    EXPECT_EQ(dtype_from_safetensors(dtype_safetensors_name(info.dtype)), info.dtype);
    EXPECT_EQ(dtype_bytes(info.dtype), info.bytes);
  }
  EXPECT_EQ(dtype_from_name("BF16"), std::nullopt);
  EXPECT_EQ(dtype_from_safetensors("bfloat16"), std::nullopt);
  EXPECT_EQ(dtype_from_name(""), std::nullopt);
}

TEST(DTypes, SizesAreThoseOfTheFormats) {
  EXPECT_EQ(dtype_bytes(DType::kBool), 1);
  EXPECT_EQ(dtype_bytes(DType::kBF16), 2);
  EXPECT_EQ(dtype_bytes(DType::kF16), 2);
  EXPECT_EQ(dtype_bytes(DType::kF32), 4);
  EXPECT_EQ(dtype_bytes(DType::kI64), 8);
  EXPECT_EQ(dtype_bytes(DType::kF64), 8);
  EXPECT_EQ(dtype_bytes(DType::kF8E4M3), 1);
  EXPECT_EQ(dtype_bytes(DType::kF4E2M1x2), 1);
}

TEST(Units, SizesAreRead) {
  EXPECT_EQ(parse_bytes("0"), 0);
  EXPECT_EQ(parse_bytes("65536"), 65536);
  EXPECT_EQ(parse_bytes("12B"), 12);
  EXPECT_EQ(parse_bytes("64KiB"), 64 << 10);
  EXPECT_EQ(parse_bytes("256 MiB"), 256 << 20);
  EXPECT_EQ(parse_bytes("3GiB"), std::int64_t{3} << 30);
  EXPECT_EQ(parse_bytes("2TiB"), std::int64_t{2} << 40);
  EXPECT_EQ(parse_bytes("512MB"), 512'000'000);
  EXPECT_EQ(parse_bytes("7KB"), 7'000);
  EXPECT_EQ(parse_bytes("7GB"), 7'000'000'000);
  EXPECT_EQ(parse_bytes("7TB"), 7'000'000'000'000);
  EXPECT_EQ(parse_bytes("9223372036854775807"), std::numeric_limits<std::int64_t>::max());
}

TEST(Units, WhatIsNoSizeIsNamed) {
  for (const char* text : {"", " ", "MiB", "-1", "1.5GiB", "64kib", "64KiBs", "64 K", "0x10", " 64", "64KiB ",
                           "9223372036854775808", "99999999999999999999", "9223372036854775807KiB"}) {
    try {
      parse_bytes(text);
      ADD_FAILURE() << "'" << text << "' was read";
    } catch (const UsageError& error) {
      EXPECT_NE(std::string(error.what()).find("'" + std::string(text) + "'"), std::string::npos);
    }
  }
}

TEST(Units, SizesArePrintedWithThreeDigits) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1024), "1.00 KiB");
  EXPECT_EQ(format_bytes(64 << 10), "64.0 KiB");
  EXPECT_EQ(format_bytes(256 << 20), "256 MiB");
  EXPECT_EQ(format_bytes(std::int64_t{61'064'245'248}), "56.9 GiB");
  EXPECT_EQ(format_bytes(std::int64_t{3} << 50), "3.00 PiB");
}

TEST(Units, RoundingUpAndCeiling) {
  static_assert(round_up(0, 256) == 0 && round_up(1, 256) == 256 && round_up(256, 256) == 256);
  static_assert(ceil_div(0, 7) == 0 && ceil_div(1, 7) == 1 && ceil_div(7, 7) == 1 && ceil_div(8, 7) == 2);
  EXPECT_EQ(round_up((std::int64_t{1} << 40) + 1, 64), (std::int64_t{1} << 40) + 64);
}

TEST(Shapes, EveryTensorIsAMatrixToo) {
  struct Case {
    Shape shape;
    std::int64_t rows, cols, elements;
    const char* text;
  };
  for (const Case& c :
       {Case{{}, 1, 1, 1, "[]"}, Case{{7}, 1, 7, 7, "[7]"}, Case{{3, 5}, 3, 5, 15, "[3, 5]"},
        Case{{2, 3, 5}, 6, 5, 30, "[2, 3, 5]"}, Case{{2, 3, 4, 5}, 24, 5, 120, "[2, 3, 4, 5]"},
        Case{{0, 5}, 0, 5, 0, "[0, 5]"}, Case{{5, 0}, 0, 0, 0, "[5, 0]"}}) {
    EXPECT_EQ(c.shape.rows(), c.rows) << c.text;
    EXPECT_EQ(c.shape.cols(), c.cols) << c.text;
    EXPECT_EQ(c.shape.elements(), c.elements) << c.text;
    EXPECT_EQ(c.shape.to_string(), c.text);
    EXPECT_EQ(Box::whole(c.shape).area(), c.elements) << c.text;
  }
}

TEST(Shapes, AtMostFiveDimensions) {
  EXPECT_THROW((Shape{1, 2, 3, 4, 5, 6}), InputError);
  EXPECT_EQ((Shape{1, 2, 3, 4, 5}.dims()), 5u);
}

TEST(Shapes, EqualityLooksAtDimensionsAndExtents) {
  EXPECT_EQ((Shape{2, 3}), (Shape{2, 3}));
  EXPECT_NE((Shape{2, 3}), (Shape{3, 2}));
  EXPECT_NE((Shape{2}), (Shape{2, 0}));
  EXPECT_NE(Shape{}, (Shape{0}));
}

TEST(Boxes, ContainmentAndIntersection) {
  const Box box{2, 4, 10, 6};
  EXPECT_TRUE(box.contains(box));
  EXPECT_TRUE(box.contains({3, 1, 15, 1}));
  EXPECT_FALSE(box.contains({1, 2, 10, 6}));
  EXPECT_FALSE(box.contains({2, 5, 10, 6}));
  EXPECT_FALSE(box.contains({2, 4, 10, 7}));
  EXPECT_FALSE(box.contains({2, 4, 9, 2}));

  EXPECT_EQ(box.intersect({4, 10, 0, 12}), (Box{4, 2, 10, 2}));
  EXPECT_EQ(box.intersect(box), box);
  EXPECT_TRUE(box.intersect({6, 1, 10, 6}).empty());
  EXPECT_TRUE(box.intersect({2, 4, 16, 1}).empty());
  EXPECT_TRUE(box.intersect({100, 1, 100, 1}).empty());
  EXPECT_EQ(box.to_string(), "rows 2..6, columns 10..16");
}

TEST(Hashes, TextIsXxh3) {
  // XXH3-64 with seed 0, from the algorithm's published test values: files and digests depend on it.
  EXPECT_EQ(hash_text(""), 0x2d06800538d394c2ull);
  EXPECT_NE(hash_text("a"), hash_text("b"));
}

TEST(Hashes, NeighbouringTextsDoNotRunTogether) {
  const auto of = [](std::string_view a, std::string_view b) { return Hasher().add(a).add(b).digest(); };
  EXPECT_EQ(of("ab", "c"), of("ab", "c"));
  EXPECT_NE(of("ab", "c"), of("a", "bc"));
  EXPECT_NE(of("abc", ""), of("", "abc"));
}

TEST(Hashes, OrderAndValueCount) {
  const auto of = [](auto a, auto b) { return Hasher().add(a).add(b).digest(); };
  EXPECT_EQ(of(1, std::int64_t{2}), of(1, std::int64_t{2}));
  EXPECT_NE(of(1, 2), of(2, 1));
  EXPECT_NE(of(true, 0), of(false, 0));
  EXPECT_NE(of(DType::kBF16, 0), of(DType::kF16, 0));
}

TEST(Mix, IsTheFinaliserOfSplitmix64) {
  // The first two outputs of splitmix64 seeded with 0.
  static_assert(mix64(0x9e3779b97f4a7c15ull) == 0xe220a8397b1dcdafull);
  static_assert(mix64(2 * 0x9e3779b97f4a7c15ull) == 0x6e789e6aa1b965f4ull);
}

TEST(Bf16, EveryValueComesBack) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = bf16_value(static_cast<std::uint16_t>(bits));
    const std::uint16_t back = bf16_bits(value);
    // A signalling NaN may come back quiet, but with its sign and payload.
    const std::uint32_t expected = std::isnan(value) ? bits | 0x40u : bits;
    EXPECT_EQ(back, expected) << std::hex << bits;
  }
}

TEST(Bf16, TiesGoToEven) {
  static_assert(bf16_bits(1.0f) == 0x3f80);
  static_assert(bf16_bits(1.0f + 0x1p-8f) == 0x3f80);                 // between 0x3f80 and 0x3f81
  static_assert(bf16_bits(1.0f + 3 * 0x1p-8f) == 0x3f82);             // between 0x3f81 and 0x3f82
  static_assert(bf16_bits(-1.0f - 0x1p-8f) == 0xbf80);                // the same below zero
  static_assert(bf16_bits(1.0f + 0x1p-8f + 0x1p-23f) == 0x3f81);      // just above the tie
  static_assert(bf16_bits(1.0f + 3 * 0x1p-8f - 0x1p-22f) == 0x3f81);  // just below
}

TEST(Bf16, EdgesOfTheRange) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  static_assert(bf16_bits(0.0f) == 0x0000 && bf16_bits(-0.0f) == 0x8000);
  static_assert(bf16_bits(kInfinity) == 0x7f80 && bf16_bits(-kInfinity) == 0xff80);
  // The largest float is nearer to 2^128 than to the largest bfloat16.
  static_assert(bf16_bits(std::numeric_limits<float>::max()) == 0x7f80);
  static_assert(bf16_bits(std::bit_cast<float>(0x7f7f7fffu)) == 0x7f7f);
  static_assert(bf16_bits(std::bit_cast<float>(0x7f7f8000u)) == 0x7f80);
  // Subnormals round like all others.
  static_assert(bf16_bits(std::bit_cast<float>(0x00008000u)) == 0x0000);
  static_assert(bf16_bits(std::bit_cast<float>(0x00008001u)) == 0x0001);
  static_assert(bf16_bits(std::bit_cast<float>(0x00018000u)) == 0x0002);
}

TEST(Bf16, NanStaysNan) {
  // Payloads that live in the low half alone must not turn into infinity.
  for (const std::uint32_t bits :
       {0x7f800001u, 0x7fbfffffu, 0x7fc00000u, 0x7fffffffu, 0xff800001u, 0xffffffffu}) {
    const std::uint16_t rounded = bf16_bits(std::bit_cast<float>(bits));
    EXPECT_TRUE(std::isnan(bf16_value(rounded))) << std::hex << bits;
    EXPECT_EQ(rounded >> 15, bits >> 31) << std::hex << bits;
  }
}

TEST(Bf16, NoNeighbourIsNearer) {
  std::mt19937 random(1);
  for (int i = 0; i < 100'000; ++i) {
    const auto value = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    if (!std::isfinite(value)) continue;
    const std::uint16_t bits = bf16_bits(value);
    const auto distance = [&](std::uint16_t candidate) {
      // Beyond the largest value counts what the next step would be, 2^128.
      const double at = std::isinf(bf16_value(candidate)) ? std::copysign(0x1p128, value)
                                                          : static_cast<double>(bf16_value(candidate));
      return std::abs(at - static_cast<double>(value));
    };
    for (const int step : {-1, 1}) {
      const auto other = static_cast<std::uint16_t>(bits + step);
      if ((other ^ bits) & 0x8000u || std::isnan(bf16_value(other))) continue;
      EXPECT_LE(distance(bits), distance(other)) << value;
    }
  }
}

TEST(F16, KnownValues) {
  static_assert(f16_bits(0.0f) == 0x0000 && f16_bits(-0.0f) == 0x8000);
  static_assert(f16_bits(1.0f) == 0x3c00 && f16_bits(-2.0f) == 0xc000);
  static_assert(f16_bits(1.0f / 3) == 0x3555);
  // The smallest normal half, the largest and the smallest subnormal.
  static_assert(f16_bits(0x1p-14f) == 0x0400);
  static_assert(f16_bits(0x1p-14f - 0x1p-24f) == 0x03ff);
  static_assert(f16_bits(0x1p-24f) == 0x0001 && f16_bits(-0x1p-24f) == 0x8001);
  // The largest half, and what is nearer to 2^16 than to it.
  static_assert(f16_bits(65504.0f) == 0x7bff && f16_bits(65519.99f) == 0x7bff);
  static_assert(f16_bits(65520.0f) == 0x7c00 && f16_bits(-65520.0f) == 0xfc00);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  static_assert(f16_bits(kInfinity) == 0x7c00 && f16_bits(-kInfinity) == 0xfc00);
  static_assert(f16_bits(std::numeric_limits<float>::max()) == 0x7c00);
  static_assert(f16_bits(std::numeric_limits<float>::denorm_min()) == 0x0000);
}

TEST(F16, EveryValueComesBack) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const double value = f16_value(static_cast<std::uint16_t>(bits));
    if (std::isnan(value)) continue;
    EXPECT_EQ(f16_bits(static_cast<float>(value)), bits) << std::hex << bits;
  }
}

TEST(F16, TiesGoToEvenAndTheRestToTheNearest) {
  // Between every two neighbours, subnormal ones included; the last is infinity, in whose place counts 2^16.
  for (std::uint16_t below = 0; below < 0x7c00; ++below) {
    const auto above = static_cast<std::uint16_t>(below + 1);
    const double upper = above == 0x7c00 ? 0x1p16 : f16_value(above);
    const auto middle = static_cast<float>((f16_value(below) + upper) / 2);
    for (const int sign : {0x0000, 0x8000}) {
      const auto rounded = [&](float value) {
        return f16_bits(std::copysign(value, sign != 0 ? -1.0f : 1.0f));
      };
      EXPECT_EQ(rounded(middle), sign | (below % 2 == 0 ? below : above)) << std::hex << below;
      EXPECT_EQ(rounded(std::nextafter(middle, 0.0f)), sign | below) << std::hex << below;
      EXPECT_EQ(rounded(std::nextafter(middle, 1e9f)), sign | above) << std::hex << below;
    }
  }
}

TEST(F16, NanStaysNan) {
  // Payloads that live in the low bits alone must not turn into infinity.
  for (const std::uint32_t bits :
       {0x7f800001u, 0x7fbfffffu, 0x7fc00000u, 0x7fffffffu, 0xff800001u, 0xffffffffu}) {
    const std::uint16_t rounded = f16_bits(std::bit_cast<float>(bits));
    EXPECT_TRUE(std::isnan(f16_value(rounded))) << std::hex << bits;
    EXPECT_EQ(rounded >> 15, bits >> 31) << std::hex << bits;
  }
}

TEST(Errors, CarryACode) {
  try {
    throw InputError("no such tensor");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadInput);
    EXPECT_STREQ(error.what(), "no such tensor");
  }
  EXPECT_EQ(static_cast<int>(UsageError("").code()), 64);
  EXPECT_EQ(static_cast<int>(InputError("").code()), 65);
  EXPECT_EQ(static_cast<int>(VerifyError("").code()), 66);
  EXPECT_EQ(static_cast<int>(InternalError("").code()), 70);
  EXPECT_EQ(static_cast<int>(IoError("").code()), 74);
  EXPECT_EQ(static_cast<int>(StoppedError("").code()), 75);
  EXPECT_EQ(static_cast<int>(TimeoutError("").code()), 76);
}

TEST(Errors, WhatTheSystemRefusesIsNoFaultOfOurs) {
  namespace fs = std::filesystem;
  const auto code_of = [](const std::exception& exception) { return error_of(exception).code(); };
  EXPECT_EQ(code_of(std::bad_alloc()), ExitCode::kInputOutput);
  EXPECT_EQ(code_of(std::bad_array_new_length()), ExitCode::kInputOutput);
  EXPECT_EQ(code_of(std::length_error("vector")), ExitCode::kInputOutput);
  const std::system_error no_thread(std::make_error_code(std::errc::resource_unavailable_try_again));
  EXPECT_EQ(code_of(no_thread), ExitCode::kInputOutput);
  EXPECT_NE(std::string(error_of(no_thread).what()).find("ulimit -u"), std::string::npos);
  EXPECT_NE(std::string(error_of(std::bad_alloc()).what()).find("memory"), std::string::npos);
  const fs::filesystem_error no_file("status", "/a/b", std::make_error_code(std::errc::permission_denied));
  EXPECT_EQ(code_of(no_file), ExitCode::kInputOutput);
  EXPECT_EQ(std::string(error_of(no_file).what()).find("/a/b: Permission denied"), 0);
}

TEST(Errors, TheProgramsOwnStayWhatTheyAre) {
  const InputError error("x: is no shard");
  const std::exception& as_any = error;
  EXPECT_EQ(error_of(as_any).code(), ExitCode::kBadInput);
  EXPECT_STREQ(error_of(as_any).what(), "x: is no shard");
  EXPECT_EQ(error_of(std::logic_error("l")).code(), ExitCode::kInternal);
  EXPECT_STREQ(error_of(std::logic_error("l")).what(), "l");
}

TEST(Errors, InternalOnesSayWhereTheyWereThrown) {
  const InternalError error("two buckets overlap");
  const std::exception& as_any = error;
  EXPECT_EQ(std::string(error.what()).find("two buckets overlap (tests/unit/core_test.cpp:"), 0);
  EXPECT_STREQ(error_of(as_any).what(), error.what());
}

/// The same by the C library, in double.
std::uint32_t expected_negated_exp(float value) {
  return std::bit_cast<std::uint32_t>(static_cast<float>(-std::exp(static_cast<double>(value))));
}

TEST(NegatedExp, IsTheDoubleRoundedOnceForAllOfBfloat16) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto value = std::bit_cast<float>(bits << 16);
    if (std::isnan(value)) {
      ASSERT_EQ(negated_exp_bits(value), 0x7fc00000u) << bits;
    } else {
      ASSERT_EQ(negated_exp_bits(value), expected_negated_exp(value)) << value;
    }
  }
}

TEST(NegatedExp, IsTheDoubleRoundedOnceForRandomValues) {
  std::mt19937 random(7);
  std::uniform_real_distribution<float> common(-20, 20);
  std::uniform_real_distribution<float> all(-105, 90);
  std::uniform_real_distribution<float> below_normal(-104, -87);
  for (int i = 0; i < 300'000; ++i) {
    for (const float value : {common(random), all(random), below_normal(random)}) {
      ASSERT_EQ(negated_exp_bits(value), expected_negated_exp(value)) << value;
    }
    const auto any = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    if (std::isnan(any)) continue;
    ASSERT_EQ(negated_exp_bits(any), expected_negated_exp(any)) << any;
  }
}

TEST(NegatedExp, WhatVllmsLoaderHasMadeOfAModel) {
  // A_log of the small model of tests/data/vllm/nemotron-h, and A in vLLM's memory.
  constexpr std::array<float, 6> kLogs{1.4765625f, 1.28125f,   1.390625f,
                                       0.3984375f, 1.0546875f, 0.2353515625f};
  constexpr std::array<std::uint32_t, 6> kBits{0xc08c1785u, 0xc066790du, 0xc0808e37u,
                                               0xbfbea7cau, 0xc037bfbdu, 0xbfa1f71bu};
  for (std::size_t i = 0; i < kLogs.size(); ++i) EXPECT_EQ(negated_exp_bits(kLogs.at(i)), kBits.at(i));
}

TEST(NegatedExp, AtTheEnds) {
  static_assert(negated_exp_bits(0.0f) == 0xbf800000u);
  static_assert(negated_exp_bits(-0.0f) == 0xbf800000u);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(negated_exp_bits(kInfinity), 0xff800000u);
  EXPECT_EQ(negated_exp_bits(-kInfinity), 0x80000000u);
  EXPECT_EQ(negated_exp_bits(89.0f), 0xff800000u);
  EXPECT_EQ(negated_exp_bits(-104.0f), 0x80000000u);
}

/// The bfloat16 that is nearest to `value`, the even one of two; `value` has a bfloat16's range.
std::uint16_t nearest_bf16(double value) {
  int exponent = 0;
  constexpr int kBits = 8;
  const double digits = std::nearbyint(std::ldexp(std::frexp(value, &exponent), kBits));
  const auto rounded = static_cast<float>(std::ldexp(digits, exponent - kBits));
  return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(rounded) >> 16);
}

TEST(OneMore, IsTheSumRoundedOnceForAllOfBfloat16) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto held = static_cast<std::uint16_t>(bits);
    const float value = bf16_value(held);
    if (std::isnan(value)) {
      ASSERT_EQ(one_more_bf16(held), held | 0x40u) << bits;
    } else {
      ASSERT_EQ(one_more_bf16(held), std::isinf(value) ? held : nearest_bf16(1.0 + value)) << value;
    }
  }
}

TEST(OneMore, OfFloat32) {
  static_assert(one_more_bits(0.0f) == 0x3f800000u);
  static_assert(one_more_bits(-1.0f) == 0);
  static_assert(one_more_bits(0x1p-24f) == 0x3f800000u);  // halfway, to the even one
  static_assert(one_more_bits(0x1.8p-23f) == 0x3f800002u);
  EXPECT_EQ(one_more_bits(std::bit_cast<float>(0xff812345u)), 0xffc12345u);
}

TEST(OneMore, OneLessIsThereWhereNothingIsLost) {
  EXPECT_EQ(one_less(1.0f), 0.0f);
  EXPECT_EQ(one_less(0.0f), -1.0f);
  EXPECT_EQ(one_less(0x1.02p-17f), 0x1.02p-17f - 1.0f);
  EXPECT_EQ(one_less(0x1.02p-18f), std::nullopt);
  EXPECT_EQ(one_less(-0.0f), std::nullopt);
  // Each of bfloat16 that a norm is likely to have.
  for (std::uint32_t bits = 0x3700; bits < 0x4b00; ++bits) {
    EXPECT_TRUE(one_less(bf16_value(static_cast<std::uint16_t>(bits)))) << bits;
    if (bits >= 0x3780) {
      EXPECT_TRUE(one_less(-bf16_value(static_cast<std::uint16_t>(bits)))) << bits;
    }
  }
}

}  // namespace

}  // namespace weightcast
