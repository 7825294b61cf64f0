#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "core/float_bits.hpp"
#include "core/negated_exp.hpp"
#include "core/one_more.hpp"
#include "kernels/digest.hpp"
#include "kernels/executor.hpp"

namespace weightcast {

namespace {

using Bytes = std::vector<std::byte>;

class Random {
 public:
  explicit Random(std::uint64_t seed) : random_(seed) {}
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random_);
  }
  Bytes bytes(std::int64_t count) {
    Bytes result(static_cast<std::size_t>(count));
    std::generate(result.begin(), result.end(), [&] { return static_cast<std::byte>(random_() >> 56); });
    return result;
  }
  std::mt19937_64& engine() { return random_; }

 private:
  std::mt19937_64 random_;
};

/// Moves whose regions do not meet, over several buffers, and the sizes that they need.
struct RandomProgram {
  std::vector<Move> moves;
  std::vector<std::int64_t> buffer_bytes;
  std::int64_t staging_bytes = 0;

  explicit RandomProgram(Random& random) {
    buffer_bytes.assign(static_cast<std::size_t>(random.between(1, 4)), 0);
    const std::int64_t count = random.between(1, 12);
    for (std::int64_t i = 0; i < count; ++i) {
      Move move;
      move.buffer =
          static_cast<std::uint32_t>(random.between(0, static_cast<std::int64_t>(buffer_bytes.size()) - 1));
      move.rows = random.between(1, 9);
      move.row_bytes = random.between(1, 70);
      move.pitch = move.row_bytes + (random.between(0, 1) != 0 ? random.between(1, 40) : 0);
      std::int64_t& end = buffer_bytes[move.buffer];
      move.offset = end + random.between(0, 7);
      end = move.offset + (move.rows - 1) * move.pitch + move.row_bytes;
      move.staging = staging_bytes + random.between(0, 7);
      // As where a colocated rank's weights stand in for staging.
      if (random.between(0, 3) == 0) move.staging_pitch = move.row_bytes + random.between(0, 9);
      staging_bytes = move.staging + (move.rows - 1) * move.staging_step() + move.row_bytes;
      moves.push_back(move);
    }
    std::shuffle(moves.begin(), moves.end(), random.engine());
  }

  std::vector<Bytes> random_buffers(Random& random) const {
    std::vector<Bytes> buffers(buffer_bytes.size());
    std::transform(buffer_bytes.begin(), buffer_bytes.end(), buffers.begin(),
                   [&](std::int64_t bytes) { return random.bytes(bytes); });
    return buffers;
  }
};

std::int64_t at(const Move& move, std::int64_t row, std::int64_t byte) {
  return move.offset + row * move.pitch + byte;
}

template <typename Each>
void for_each_byte(const Move& move, Each each) {
  for (std::int64_t row = 0; row < move.rows; ++row) {
    for (std::int64_t byte = 0; byte < move.row_bytes; ++byte) {
      each(static_cast<std::size_t>(at(move, row, byte)),
           static_cast<std::size_t>(move.staging + row * move.staging_step() + byte));
    }
  }
}

TEST(HostExecutor, PackGathersJustTheBytesOfItsMoves) {
  Random random(1);
  const auto executor = make_host_executor();
  for (int round = 0; round < 300; ++round) {
    const RandomProgram program(random);
    const std::vector<Bytes> buffers = program.random_buffers(random);
    std::vector<const std::byte*> pointers(buffers.size());
    std::transform(buffers.begin(), buffers.end(), pointers.begin(), [](const Bytes& b) { return b.data(); });
    Bytes staging = random.bytes(program.staging_bytes);
    Bytes expected = staging;
    for (const Move& move : program.moves) {
      for_each_byte(move, [&](auto from, auto to) { expected[to] = buffers[move.buffer][from]; });
    }
    executor->pack(program.moves, pointers, staging.data());
    ASSERT_TRUE(staging == expected) << round;
  }
}

TEST(HostExecutor, UnpackScattersAndZeroesJustTheBytesOfItsMoves) {
  Random random(2);
  const auto executor = make_host_executor();
  for (int round = 0; round < 300; ++round) {
    RandomProgram program(random);
    for (Move& move : program.moves) move.op = random.between(0, 3) == 0 ? MoveOp::kZero : MoveOp::kCopy;
    std::vector<Bytes> buffers = program.random_buffers(random);
    std::vector<Bytes> expected = buffers;
    std::vector<std::byte*> pointers(buffers.size());
    std::transform(buffers.begin(), buffers.end(), pointers.begin(), [](Bytes& b) { return b.data(); });
    const Bytes staging = random.bytes(program.staging_bytes);
    for (const Move& move : program.moves) {
      for_each_byte(move, [&](auto to, auto from) {
        expected[move.buffer][to] = move.op == MoveOp::kZero ? std::byte{0} : staging[from];
      });
    }
    executor->unpack(program.moves, staging.data(), pointers);
    ASSERT_TRUE(buffers == expected) << round;
  }
}

TEST(HostExecutor, ZeroFillsReadNoStaging) {
  const auto executor = make_host_executor();
  Bytes buffer(100, std::byte{7});
  std::byte* const pointer = buffer.data();
  const std::vector<Move> program{{10, 20, 0, 3, 5, 0, MoveOp::kZero}, {80, 0, 0, 1, 20, 0, MoveOp::kZero}};
  executor->unpack(program, nullptr, {&pointer, 1});
  for (std::size_t i = 0; i < buffer.size(); ++i) {
    const bool zero = (i >= 10 && i < 15) || (i >= 30 && i < 35) || (i >= 50 && i < 55) || i >= 80;
    EXPECT_EQ(buffer[i], zero ? std::byte{0} : std::byte{7}) << i;
  }
}

TEST(HostExecutor, FirstNotZeroFindsAnySingleByte) {
  const auto executor = make_host_executor();
  Bytes buffer(100, std::byte{0});
  const std::byte* const pointer = buffer.data();
  const std::vector<Move> program{{10, 20, 0, 3, 5, 0, MoveOp::kZero}, {80, 0, 0, 1, 20, 0, MoveOp::kZero}};
  EXPECT_EQ(executor->first_not_zero(program, {&pointer, 1}), -1);
  EXPECT_EQ(executor->first_not_zero({}, {&pointer, 1}), -1);
  for (std::size_t i = 0; i < buffer.size(); ++i) {
    buffer[i] = std::byte{1};
    const bool first = (i >= 10 && i < 15) || (i >= 30 && i < 35) || (i >= 50 && i < 55);
    EXPECT_EQ(executor->first_not_zero(program, {&pointer, 1}), first ? 0 : i >= 80 ? 1 : -1) << i;
    buffer[i] = std::byte{0};
  }
}

TEST(HostExecutor, PackCastsToNearestEven) {
  Random random(3);
  const auto executor = make_host_executor();
  constexpr std::int64_t kRows = 17;
  constexpr std::int64_t kCols = 33;
  constexpr std::int64_t kPitch = 160;
  Bytes source = random.bytes(kRows * kPitch);
  // Among random bits some that are special: infinities, NaN, ties.
  for (const float value : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN(),
                            1.0f + 0x1p-8f, -1.0f - 3 * 0x1p-8f, std::numeric_limits<float>::max()}) {
    std::memcpy(source.data() + random.between(0, kRows - 1) * kPitch + 4 * random.between(0, kCols - 1),
                &value, 4);
  }
  const std::byte* const pointer = source.data();
  Bytes staging(6 + kRows * kCols * 2);
  const Move move{0, kPitch, 6, kRows, kCols * 2, 0, MoveOp::kF32ToBF16};
  executor->pack({&move, 1}, {&pointer, 1}, staging.data());
  for (std::int64_t row = 0; row < kRows; ++row) {
    for (std::int64_t col = 0; col < kCols; ++col) {
      float value = 0;
      std::memcpy(&value, source.data() + row * kPitch + col * 4, 4);
      std::uint16_t bits = 0;
      std::memcpy(&bits, staging.data() + 6 + (row * kCols + col) * 2, 2);
      ASSERT_EQ(bits, bf16_bits(value)) << value;
    }
  }
}

TEST(HostExecutor, UnpackWidensAndTheDigestFollows) {
  Random random(5);
  const auto executor = make_host_executor();
  constexpr std::int64_t kRows = 11;
  constexpr std::int64_t kCols = 23;
  constexpr std::int64_t kPitch = 100;
  constexpr std::uint64_t kKey = 77;
  const Box box{3, kRows, 5, kCols};
  const Bytes staging = random.bytes(6 + kRows * kCols * 2);
  const Bytes before = random.bytes(kRows * kPitch);
  Bytes parameter = before;
  std::byte* const pointer = parameter.data();
  const Move move{0, kPitch, 6, kRows, kCols * 2, 0, MoveOp::kBF16ToF32};
  executor->unpack({&move, 1}, staging.data(), {&pointer, 1});
  for (std::int64_t row = 0; row < kRows; ++row) {
    for (std::int64_t col = 0; col < kCols; ++col) {
      std::uint32_t word = 0;
      std::memcpy(&word, parameter.data() + row * kPitch + col * 4, 4);
      std::uint16_t bits = 0;
      std::memcpy(&bits, staging.data() + 6 + (row * kCols + col) * 2, 2);
      ASSERT_EQ(word, std::uint32_t{bits} << 16);
    }
    // What lies between the rows is not the move's.
    ASSERT_TRUE(std::equal(parameter.begin() + row * kPitch + kCols * 4,
                           parameter.begin() + (row + 1) * kPitch,
                           before.begin() + row * kPitch + kCols * 4));
  }
  const std::uint64_t sent = digest_box(staging.data() + 6, kCols * 2, box, 2, kKey);
  const auto written = [&] { return digest_box(parameter.data(), kPitch, box, 4, kKey); };
  EXPECT_EQ(written(), widened_digest(sent));
  // Any bit of an element, also of the half that must be zero, makes another digest.
  for (int bit = 0; bit < 32; ++bit) {
    const std::size_t at = 2 * kPitch + 4 * 7 + static_cast<std::size_t>(bit / 8);
    parameter[at] ^= std::byte{1} << (bit % 8);
    EXPECT_NE(written(), widened_digest(sent)) << bit;
    parameter[at] ^= std::byte{1} << (bit % 8);
  }
}

TEST(HostExecutor, UnpackTakesTheNegatedExpAndItsDigestIsKnownWhereItComesFrom) {
  Random random(6);
  const auto executor = make_host_executor();
  constexpr std::int64_t kRows = 7;
  constexpr std::int64_t kCols = 19;
  constexpr std::int64_t kPitch = 100;
  constexpr std::uint64_t kKey = 78;
  const Box box{3, kRows, 5, kCols};
  for (const std::int64_t element : {2, 4}) {
    const Bytes staging = random.bytes(6 + kRows * kCols * element);
    const Bytes before = random.bytes(kRows * kPitch);
    Bytes parameter = before;
    std::byte* const pointer = parameter.data();
    const MoveOp op = element == 4 ? MoveOp::kNegatedExp : MoveOp::kNegatedExpOfBF16;
    const Move move{0, kPitch, 6, kRows, kCols * element, 0, op};
    EXPECT_FALSE(move.dense());
    executor->unpack({&move, 1}, staging.data(), {&pointer, 1});
    for (std::int64_t row = 0; row < kRows; ++row) {
      for (std::int64_t col = 0; col < kCols; ++col) {
        std::uint32_t word = 0;
        std::memcpy(&word, parameter.data() + row * kPitch + col * 4, 4);
        std::uint32_t bits = 0;
        std::memcpy(reinterpret_cast<std::byte*>(&bits) + 4 - element,
                    staging.data() + 6 + (row * kCols + col) * element, static_cast<std::size_t>(element));
        ASSERT_EQ(word, negated_exp_bits(std::bit_cast<float>(bits)));
      }
      ASSERT_TRUE(std::equal(parameter.begin() + row * kPitch + kCols * 4,
                             parameter.begin() + (row + 1) * kPitch,
                             before.begin() + row * kPitch + kCols * 4));
    }
    DigestBox sent{6, kCols * element, box, kKey, 0, 0, static_cast<std::uint8_t>(element)};
    sent.negated_exp = true;
    const std::byte* const source = staging.data();
    std::uint64_t expected = 0;
    executor->digest({&sent, 1}, {&source, 1}, {&expected, 1});
    const auto written = [&] { return digest_box(parameter.data(), kPitch, box, 4, kKey); };
    EXPECT_EQ(written(), expected);
    for (std::size_t byte = 0; byte < 4; ++byte) {
      const std::size_t at = 2 * kPitch + 4 * 7 + byte;
      parameter[at] ^= std::byte{0x10};
      EXPECT_NE(written(), expected) << byte;
      parameter[at] ^= std::byte{0x10};
    }
  }
}

TEST(HostExecutor, DigestsOfManyBoxes) {
  Random random(4);
  const auto executor = make_host_executor();
  const std::vector<Bytes> buffers{random.bytes(4096), random.bytes(4096)};
  const std::vector<const std::byte*> pointers{buffers[0].data(), buffers[1].data()};
  std::vector<DigestBox> boxes;
  for (std::uint32_t i = 0; i < 20; ++i) {
    boxes.push_back(
        {random.between(0, 100), 64, {random.between(0, 50), 9, random.between(0, 50), 13}, i, i % 2, i, 4});
  }
  std::vector<std::uint64_t> results(boxes.size());
  executor->digest(boxes, pointers, results);
  for (std::size_t i = 0; i < boxes.size(); ++i) {
    const DigestBox& box = boxes[i];
    EXPECT_EQ(results[i],
              digest_box(pointers[box.buffer] + box.offset, box.pitch, box.box, 4, box.tensor_key));
  }
}

TEST(HostExecutor, OneMoreThanWhatIsHeldIsSentAndItsDigestIsKnown) {
  Random random(7);
  const auto executor = make_host_executor();
  constexpr std::int64_t kRows = 7;
  constexpr std::int64_t kCols = 19;
  constexpr std::int64_t kPitch = 101;
  constexpr std::uint64_t kKey = 79;
  const Box box{3, kRows, 5, kCols};
  for (const std::int64_t element : {2, 4}) {
    const Bytes held = random.bytes(kRows * kPitch);
    Bytes staging = random.bytes(6 + kRows * kCols * element);
    const std::byte* const source = held.data();
    const Move move{
        0, kPitch, 6, kRows, kCols * element, 0, element == 4 ? MoveOp::kOneMoreF32 : MoveOp::kOneMoreBF16};
    EXPECT_FALSE(move.dense());
    executor->pack({&move, 1}, {&source, 1}, staging.data());
    for (std::int64_t row = 0; row < kRows; ++row) {
      for (std::int64_t col = 0; col < kCols; ++col) {
        std::uint32_t bits = 0;
        std::uint32_t sent = 0;
        std::memcpy(&bits, source + row * kPitch + col * element, static_cast<std::size_t>(element));
        std::memcpy(&sent, staging.data() + 6 + (row * kCols + col) * element,
                    static_cast<std::size_t>(element));
        const std::uint32_t expected = element == 4 ? one_more_bits(std::bit_cast<float>(bits))
                                                    : one_more_bf16(static_cast<std::uint16_t>(bits));
        ASSERT_EQ(sent, expected) << element << " " << row << " " << col;
      }
    }
    DigestBox of_held{0, kPitch, box, kKey, 0, 0, static_cast<std::uint8_t>(element)};
    of_held.one_more = true;
    std::uint64_t digest = 0;
    executor->digest({&of_held, 1}, {&source, 1}, {&digest, 1});
    EXPECT_EQ(digest, digest_box(staging.data() + 6, kCols * element, box, element, kKey));
    // A rank that is trainer and engine moves it from where it is held to its parameter.
    Bytes parameter(kRows * kCols * static_cast<std::size_t>(element));
    std::byte* const to = parameter.data();
    Move local = move;
    local.pitch = kCols * element;
    local.staging = 0;
    local.staging_pitch = kPitch;
    executor->unpack({&local, 1}, source, {&to, 1});
    EXPECT_TRUE(std::equal(parameter.begin(), parameter.end(), staging.begin() + 6));
  }
}

}  // namespace

}  // namespace weightcast
