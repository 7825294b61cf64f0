// The CUDA executor beside the host executor: byte for byte the same.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "core/hash.hpp"
#include "gpu.hpp"
#include "kernels/cuda/cuda_digests.hpp"
#include "kernels/cuda/cuda_moves.hpp"
#include "kernels/cuda/cuda_synthetic.hpp"
#include "kernels/executor.hpp"
#include "model/synthetic.hpp"
#include "twin.hpp"

namespace weightcast {

using gpu_test::Bytes;
using gpu_test::device_pointers;
using gpu_test::Random;
using gpu_test::Twin;

namespace {

/// Moves whose regions do not meet, cut into programs, over several buffers, of all kinds of sizes and
/// alignments: single bytes, rows of vectors, rows larger than a tile.
struct RandomPrograms {
  std::vector<Move> moves;
  std::vector<ProgramRange> programs;
  std::vector<std::int64_t> buffer_bytes;
  std::int64_t staging_bytes = 0;

  /// Gives a move a layout: a transpose, or rows in blocks of K in a shuffled order. Returns its bytes.
  static std::int64_t place(Random& random, Move& move) {
    MatrixLayout& layout = move.layout;
    move.row = random.between(0, 70);
    const std::int64_t rows = (move.row + move.rows + 63) / 64 * 64;
    if (random.one_in(3)) {
      layout.unit_bits = static_cast<std::uint8_t>(random.between(0, 2));
      layout.step[3] = layout.unit_bytes();
      move.row_bytes = (move.row_bytes + 3) / 4 * 4;
      move.byte = 4 * random.between(0, 20);
      layout.unit_step = rows * layout.unit_bytes();
    } else {
      layout.unit_bits = static_cast<std::uint8_t>(random.between(4, 7));
      layout.bits[0] = static_cast<std::uint8_t>(random.between(0, 2));
      layout.bits[1] = static_cast<std::uint8_t>(random.between(0, 3));
      const std::int64_t block = layout.unit_bytes();
      layout.step[0] = block << layout.bits[1];
      layout.step[1] = block;
      layout.step[3] = block << (layout.bits[0] + layout.bits[1]);
      layout.unit_step = rows * block;
      move.byte = random.between(0, 300);
    }
    return (move.byte + move.row_bytes + layout.unit_bytes()) / layout.unit_bytes() * layout.unit_step;
  }

  /// Some moves are `cast_op`, the others copies.
  RandomPrograms(Random& random, std::int64_t most_bytes, MoveOp cast_op) {
    buffer_bytes.assign(static_cast<std::size_t>(random.between(1, 4)), 0);
    const std::int64_t unit = std::int64_t{1} << random.between(0, 5);
    const std::int64_t count = random.between(1, 90);
    for (std::int64_t i = 0; i < count; ++i) {
      Move move;
      const bool cast = random.one_in(3);
      move.op = cast ? cast_op : MoveOp::kCopy;
      move.buffer = static_cast<std::uint32_t>(random.between(0, std::ssize(buffer_bytes) - 1));
      move.rows = random.one_in(2) ? 1 : random.between(1, 300);
      const std::int64_t most = std::max<std::int64_t>(1, most_bytes / move.rows / unit);
      move.row_bytes = unit * random.between(1, random.one_in(3) ? most : std::min<std::int64_t>(most, 70));
      if (cast) move.row_bytes = (move.row_bytes + 1) / 2 * 2;
      const std::int64_t placed_bytes = cast ? 2 * move.row_bytes : move.row_bytes;
      move.pitch = placed_bytes + (random.one_in(2) ? unit * random.between(1, 40) : 0);
      std::int64_t& end = buffer_bytes[move.buffer];
      move.offset = end + unit * random.between(0, 7);
      end = move.offset + (move.rows - 1) * move.pitch + placed_bytes;
      if (!cast && random.one_in(3)) end = move.offset + place(random, move);
      move.staging = staging_bytes + unit * random.between(0, 7);
      // As where a colocated rank's weights stand in for staging.
      if (!cast && random.one_in(4)) move.staging_pitch = move.row_bytes + unit * random.between(0, 9);
      staging_bytes = move.staging + (move.rows - 1) * move.staging_step() + move.row_bytes;
      moves.push_back(move);
    }
    for (std::uint32_t first = 0; first < moves.size();) {
      const auto left = static_cast<std::int64_t>(moves.size()) - first;
      const auto taken = static_cast<std::uint32_t>(random.between(0, left));
      programs.push_back({first, taken});
      first += taken;
    }
  }
};

class CudaExecutor : public ::testing::TestWithParam<int> {
 protected:
  static constexpr std::int64_t kMostBytes = 300 << 10;
  int blocks() const { return GetParam(); }
};

TEST_P(CudaExecutor, PacksWhatTheHostPacks) {
  WEIGHTCAST_NEEDS_GPUS(1);
  Random random(1);
  const auto host = make_host_executor();
  for (int round = 0; round < 40; ++round) {
    const RandomPrograms random_programs(random, kMostBytes, MoveOp::kF32ToBF16);
    std::vector<Twin> buffers;
    std::vector<const std::byte*> host_buffers;
    buffers.reserve(random_programs.buffer_bytes.size());
    for (const std::int64_t bytes : random_programs.buffer_bytes) {
      host_buffers.push_back(buffers.emplace_back(random.bytes(bytes)).host.data());
    }
    // What no move writes stays as it was.
    Twin staging(random.bytes(random_programs.staging_bytes));
    const CudaMovePrograms programs(random_programs.moves, random_programs.programs,
                                    device_pointers(buffers));
    for (std::size_t p = 0; p < random_programs.programs.size(); ++p) {
      programs.pack(p, staging.device(), blocks(), nullptr);
    }
    host->pack(random_programs.moves, host_buffers, staging.host.data());
    ASSERT_TRUE(staging.download() == staging.host) << round;
  }
}

TEST_P(CudaExecutor, UnpacksWhatTheHostUnpacks) {
  WEIGHTCAST_NEEDS_GPUS(1);
  Random random(2);
  const auto host = make_host_executor();
  for (int round = 0; round < 40; ++round) {
    RandomPrograms random_programs(random, kMostBytes, MoveOp::kBF16ToF32);
    for (Move& move : random_programs.moves) {
      if (random.one_in(4)) move.op = MoveOp::kZero;
    }
    std::vector<Twin> buffers;
    std::vector<std::byte*> host_buffers;
    buffers.reserve(random_programs.buffer_bytes.size());
    for (const std::int64_t bytes : random_programs.buffer_bytes) {
      host_buffers.push_back(buffers.emplace_back(random.bytes(bytes)).host.data());
    }
    const Twin staging(random.bytes(random_programs.staging_bytes));
    const CudaMovePrograms programs(random_programs.moves, random_programs.programs,
                                    device_pointers(buffers));
    for (std::size_t p = 0; p < random_programs.programs.size(); ++p) {
      programs.unpack(p, staging.device(), blocks(), nullptr);
    }
    host->unpack(random_programs.moves, staging.host.data(), host_buffers);
    for (const Twin& buffer : buffers) ASSERT_TRUE(buffer.download() == buffer.host) << round;
  }
}

TEST_P(CudaExecutor, NegatedExpsAreTheHosts) {
  WEIGHTCAST_NEEDS_GPUS(1);
  Random random(5);
  const auto host = make_host_executor();
  // All of bfloat16; random float32, of which most are far from what models have, and some that are near.
  Bytes staging(std::size_t{2} << 16);
  for (std::size_t i = 0; i < staging.size() / 2; ++i) {
    staging[2 * i] = static_cast<std::byte>(i & 0xff);
    staging[2 * i + 1] = static_cast<std::byte>(i >> 8);
  }
  constexpr std::int64_t kRows = 37;
  constexpr std::int64_t kCols = 1003;
  const std::int64_t second = std::ssize(staging);
  const Bytes more = random.bytes(kRows * kCols * 4);
  staging.insert(staging.end(), more.begin(), more.end());
  const std::int64_t third = std::ssize(staging);
  for (std::int64_t i = 0; i < 20'000; ++i) {
    const float value = static_cast<float>(random.between(-1'000'000, 1'000'000)) * 1.1e-4f;
    const auto* const first = reinterpret_cast<const std::byte*>(&value);
    staging.insert(staging.end(), first, first + 4);
  }
  const std::vector<Move> moves{{4, 0, 0, 1, 2 << 16, 0, MoveOp::kNegatedExpOfBF16},
                                {3, kCols * 4 + 9, second, kRows, kCols * 4, 1, MoveOp::kNegatedExp},
                                {0, 0, third, 1, 80'000, 2, MoveOp::kNegatedExp}};
  const ProgramRange all{0, 3};
  std::vector<Twin> buffers;
  for (const std::int64_t bytes :
       {std::int64_t{4 + (4 << 16)}, 3 + kRows * (kCols * 4 + 9), std::int64_t{80'000}}) {
    buffers.emplace_back(random.bytes(bytes));
  }
  std::vector<std::byte*> host_buffers;
  for (Twin& buffer : buffers) host_buffers.push_back(buffer.host.data());
  const Twin sent(staging);
  const CudaMovePrograms programs(moves, {&all, 1}, device_pointers(buffers));
  programs.unpack(0, sent.device(), blocks(), nullptr);
  host->unpack(moves, sent.host.data(), host_buffers);
  for (const Twin& buffer : buffers) ASSERT_TRUE(buffer.download() == buffer.host);

  // Where they come from and where they are, on both sides the same digests.
  std::vector<DigestBox> boxes{{0, 0, {5, 1, 7, 1 << 16}, 11, 0, 0, 2},
                               {second, kCols * 4, {0, kRows, 3, kCols}, 12, 0, 0, 4},
                               {third, 0, {0, 1, 0, 20'000}, 13, 0, 0, 4}};
  for (DigestBox& box : boxes) box.negated_exp = true;
  const std::vector<DigestBox> kept{{4, 0, {5, 1, 7, 1 << 16}, 11, 0, 0, 4},
                                    {3, kCols * 4 + 9, {0, kRows, 3, kCols}, 12, 1, 0, 4},
                                    {0, 0, {0, 1, 0, 20'000}, 13, 2, 0, 4}};
  const auto on_device = [&](const std::vector<DigestBox>& of, const std::vector<std::byte*>& in) {
    const Twin results(Bytes(of.size() * sizeof(std::uint64_t)));
    const CudaDigestPrograms digests(of, {&all, 1}, in);
    digests.run(0, reinterpret_cast<std::uint64_t*>(results.device()), blocks(), nullptr);
    const Bytes found = results.download();
    std::vector<std::uint64_t> words(of.size());
    std::memcpy(words.data(), found.data(), found.size());
    return words;
  };
  const std::byte* const data = sent.host.data();
  std::vector<std::uint64_t> expected(boxes.size());
  host->digest(boxes, {&data, 1}, expected);
  EXPECT_EQ(on_device(boxes, {sent.device()}), expected);
  EXPECT_EQ(on_device(kept, device_pointers(buffers)), expected);
}

TEST_P(CudaExecutor, OneMoreIsTheHosts) {
  WEIGHTCAST_NEEDS_GPUS(1);
  Random random(6);
  const auto host = make_host_executor();
  // All of bfloat16 in odd places; any float32.
  constexpr std::int64_t kRows = 37;
  constexpr std::int64_t kCols = 1003;
  constexpr std::int64_t kPitch = kCols * 4 + 9;
  Bytes all(4 + (std::size_t{2} << 16));
  for (std::size_t i = 0; i < std::size_t{1} << 16; ++i) {
    all[4 + 2 * i] = static_cast<std::byte>(i & 0xff);
    all[5 + 2 * i] = static_cast<std::byte>(i >> 8);
  }
  std::vector<Twin> buffers;
  buffers.emplace_back(all);
  buffers.emplace_back(random.bytes(3 + kRows * kPitch));
  const std::int64_t second = 2 << 16;
  const std::vector<Move> moves{{4, 0, 0, 1, 2 << 16, 0, MoveOp::kOneMoreBF16},
                                {3, kPitch, second, kRows, kCols * 4, 1, MoveOp::kOneMoreF32}};
  const ProgramRange both{0, 2};
  Twin staging(random.bytes(second + kRows * kCols * 4));
  const CudaMovePrograms programs(moves, {&both, 1}, device_pointers(buffers));
  programs.pack(0, staging.device(), blocks(), nullptr);
  const std::vector<const std::byte*> sources{buffers[0].host.data(), buffers[1].host.data()};
  host->pack(moves, sources, staging.host.data());
  EXPECT_TRUE(staging.download() == staging.host);

  // Straight from where they are held to where they belong.
  std::vector<Twin> parameters;
  parameters.emplace_back(random.bytes(4 + (2 << 16)));
  parameters.emplace_back(random.bytes(3 + kRows * kPitch));
  const CudaMovePrograms local(moves, {&both, 1}, device_pointers(parameters));
  local.unpack(0, staging.device(), blocks(), nullptr);
  std::vector<std::byte*> host_parameters;
  for (Twin& parameter : parameters) host_parameters.push_back(parameter.host.data());
  host->unpack(moves, staging.host.data(), host_parameters);
  for (const Twin& parameter : parameters) EXPECT_TRUE(parameter.download() == parameter.host);

  std::vector<DigestBox> boxes{{4, 0, {5, 1, 7, 1 << 16}, 11, 0, 0, 2},
                               {3, kPitch, {0, kRows, 3, kCols}, 12, 1, 0, 4}};
  for (DigestBox& box : boxes) box.one_more = true;
  std::vector<std::uint64_t> expected(boxes.size());
  host->digest(boxes, sources, expected);
  const Twin results(Bytes(boxes.size() * sizeof(std::uint64_t)));
  const CudaDigestPrograms digests(boxes, {&both, 1}, device_pointers(buffers));
  digests.run(0, reinterpret_cast<std::uint64_t*>(results.device()), blocks(), nullptr);
  const Bytes found = results.download();
  EXPECT_TRUE(std::memcmp(found.data(), expected.data(), found.size()) == 0);
}

TEST_P(CudaExecutor, TenThousandTinyMovesAndOneHuge) {
  WEIGHTCAST_NEEDS_GPUS(1);
  Random random(3);
  constexpr std::int64_t kTiny = 10'000;
  constexpr std::int64_t kHuge = 8 << 20;
  std::vector<Move> moves;
  std::int64_t staging = 0;
  for (std::int64_t i = 0; i < kTiny; ++i) {
    const std::int64_t bytes = random.between(1, 64);
    moves.push_back({staging, 0, staging, 1, bytes, 0, MoveOp::kCopy});
    staging += bytes;
  }
  moves.push_back({staging, 0, staging, 1, kHuge, 0, MoveOp::kCopy});
  staging += kHuge;
  Twin source(random.bytes(staging));
  const Twin packed(Bytes(source.host.size()));
  std::byte* const base = source.device();
  const ProgramRange all{0, static_cast<std::uint32_t>(moves.size())};
  const CudaMovePrograms programs(moves, {&all, 1}, {&base, 1});
  programs.pack(0, packed.device(), blocks(), nullptr);
  EXPECT_TRUE(packed.download() == source.host);
}

TEST_P(CudaExecutor, FindsTheFirstMoveThatIsNotZero) {
  WEIGHTCAST_NEEDS_GPUS(1);
  const std::vector<Move> moves{{10, 20, 0, 3, 5, 0, MoveOp::kZero},
                                {80, 0, 0, 1, 20, 0, MoveOp::kZero},
                                {200, 0, 0, 1, 100'000, 0, MoveOp::kZero}};
  const ProgramRange all{0, 3};
  Twin buffer(Bytes(200 + 100'000));
  Twin result(Bytes(sizeof(unsigned)));
  std::byte* const base = buffer.device();
  const CudaMovePrograms programs(moves, {&all, 1}, {&base, 1});
  for (const std::int64_t dirty : {-1, 9, 10, 34, 35, 54, 79, 80, 99, 150, 200, 65'736, 100'199}) {
    std::ranges::fill(buffer.host, std::byte{0});
    if (dirty >= 0) buffer.host[static_cast<std::size_t>(dirty)] = std::byte{1};
    buffer.upload();
    std::ranges::fill(result.host, std::byte{0xff});
    result.upload();
    programs.find_not_zero(0, reinterpret_cast<unsigned*>(result.device()), blocks(), nullptr);
    unsigned found = 0;
    const Bytes bytes = result.download();
    std::memcpy(&found, bytes.data(), sizeof found);
    const std::byte* const host = buffer.host.data();
    const std::int64_t expected = make_host_executor()->first_not_zero(moves, {&host, 1});
    EXPECT_EQ(found, expected < 0 ? std::numeric_limits<unsigned>::max() : static_cast<unsigned>(expected))
        << dirty;
  }
}

TEST_P(CudaExecutor, DigestsAreTheHosts) {
  WEIGHTCAST_NEEDS_GPUS(1);
  Random random(4);
  const auto host = make_host_executor();
  for (int round = 0; round < 40; ++round) {
    std::vector<DigestBox> boxes;
    std::int64_t bytes = 0;
    const std::int64_t count = random.between(1, 30);
    for (std::int64_t i = 0; i < count; ++i) {
      DigestBox box;
      box.element_bytes = static_cast<std::uint8_t>(1 << random.between(0, 3));
      box.box = {random.between(0, 100'000), random.one_in(2) ? 1 : random.between(1, 400),
                 random.between(0, 100'000), random.one_in(3) ? 512 : random.between(1, 900)};
      const std::int64_t unit = random.one_in(2) ? 16 : 1;
      box.offset = (bytes + unit - 1) / unit * unit;
      box.pitch = (box.box.cols * box.element_bytes + random.between(0, 30) + unit - 1) / unit * unit;
      box.tensor_key = static_cast<std::uint64_t>(random.between(0, 1'000'000'000)) * 0x9e3779b97f4a7c15ull;
      bytes = box.offset + box.box.rows * box.pitch;
      if (random.one_in(2)) {
        // As a layout's matrix; the element must not be cut.
        Move move{box.offset, 0, 0, box.box.rows, box.box.cols * box.element_bytes, 0, MoveOp::kCopy};
        std::int64_t placed = 0;
        do {
          move.layout = {};
          placed = RandomPrograms::place(random, move);
        } while (move.layout.unit_bytes() % box.element_bytes != 0 || move.byte % box.element_bytes != 0);
        box.layout = move.layout;
        box.row = move.row;
        box.byte = move.byte;
        bytes = box.offset + placed + 16;
      }
      boxes.push_back(box);
    }
    const Twin buffer(random.bytes(bytes));
    const Twin results(Bytes(boxes.size() * sizeof(std::uint64_t)));
    std::byte* const base = buffer.device();
    const auto half = static_cast<std::uint32_t>(boxes.size() / 2);
    const std::vector<ProgramRange> ranges{{0, half},
                                           {half, static_cast<std::uint32_t>(boxes.size()) - half}};
    const CudaDigestPrograms programs(boxes, ranges, {&base, 1});
    for (std::size_t p = 0; p < ranges.size(); ++p) {
      programs.run(p, reinterpret_cast<std::uint64_t*>(results.device()), blocks(), nullptr);
    }
    std::vector<std::uint64_t> expected(boxes.size());
    const std::byte* const data = buffer.host.data();
    host->digest(boxes, {&data, 1}, expected);
    const Bytes found = results.download();
    ASSERT_EQ(std::memcmp(found.data(), expected.data(), found.size()), 0) << round;
  }
}

/// Boxes of one buffer and the moves that bring them elsewhere: some of what can be moved 16 bytes at once,
/// some not, and every seventh move has no digest.
struct RandomDigestedMoves {
  std::vector<Move> moves;
  std::vector<DigestBox> boxes;
  std::vector<std::int64_t> box_of_move;
  std::int64_t read_bytes = 0;
  std::int64_t written_bytes = 0;

  RandomDigestedMoves(Random& random, CudaDigestedMoves::Into into) {
    const std::int64_t count = random.between(1, 30);
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t unit = random.one_in(4) ? 2 : 16;
      const std::int64_t element = std::int64_t{1} << random.between(1, 3);
      const std::int64_t rows = random.one_in(3) ? 1 : random.between(1, 600);
      const std::int64_t row_bytes = std::max(element, unit) * random.between(1, random.one_in(3) ? 300 : 40);
      const std::int64_t pitch = row_bytes + unit * random.between(0, 5);
      const std::int64_t from = (read_bytes + unit - 1) / unit * unit;
      std::int64_t to = (written_bytes + unit - 1) / unit * unit;
      read_bytes = from + rows * pitch;
      Move move;
      move.rows = rows;
      move.row_bytes = row_bytes;
      if (into == CudaDigestedMoves::Into::kStaging) {
        move.offset = from;
        move.pitch = pitch;
        move.staging = to;
        if (random.one_in(2)) move.staging_pitch = row_bytes + unit * random.between(0, 3);
        written_bytes = to + rows * move.staging_step();
      } else {
        move.staging = from;
        move.staging_pitch = pitch;
        move.pitch = row_bytes + unit * random.between(0, 3);
        std::int64_t bytes = rows * move.pitch;
        if (random.one_in(2)) {
          // As experts in blocks of K, their rows in a shuffled order.
          move.layout.unit_bits = static_cast<std::uint8_t>(random.between(4, 7));
          move.layout.bits[0] = 1;
          move.layout.bits[1] = 2;
          const std::int64_t block = move.layout.unit_bytes();
          move.layout.step[0] = 4 * block;
          move.layout.step[1] = block;
          move.layout.step[3] = 8 * block;
          move.row = random.between(0, 9);
          move.byte = unit * random.between(0, 9);
          move.layout.unit_step = (move.row + rows + 7) / 8 * 8 * block;
          bytes = (move.byte + row_bytes + block) / block * move.layout.unit_step;
          to = (to + 15) / 16 * 16;
        }
        move.offset = to;
        written_bytes = to + bytes;
      }
      box_of_move.push_back(i % 7 == 6 ? -1 : std::ssize(boxes));
      moves.push_back(move);
      DigestBox box{from,
                    pitch,
                    {random.between(0, 1000), rows, random.between(0, 1000), row_bytes / element},
                    static_cast<std::uint64_t>(i) + 77,
                    0,
                    0,
                    static_cast<std::uint8_t>(element)};
      if (box_of_move.back() >= 0) boxes.push_back(box);
    }
  }
};

TEST_P(CudaExecutor, MovesThatDigestWhatTheyReadAreMovesAndDigests) {
  WEIGHTCAST_NEEDS_GPUS(1);
  Random random(6);
  const auto host = make_host_executor();
  for (int round = 0; round < 60; ++round) {
    SCOPED_TRACE(round);
    const bool packs = round % 2 == 0;
    const auto into = packs ? CudaDigestedMoves::Into::kStaging : CudaDigestedMoves::Into::kBuffers;
    const RandomDigestedMoves all(random, into);
    const Twin source(random.bytes(all.read_bytes));
    // What no move writes stays as it was.
    Twin target(random.bytes(all.written_bytes));
    const Twin results(Bytes(all.boxes.size() * sizeof(std::uint64_t)));
    auto* const sums = reinterpret_cast<std::uint64_t*>(results.device());
    std::byte* const from = source.device();
    std::byte* const to = target.device();
    const auto count = static_cast<std::uint32_t>(all.moves.size());
    const auto boxes = static_cast<std::uint32_t>(all.boxes.size());
    const std::vector<ProgramRange> moves{{0, count / 2}, {count / 2, count - count / 2}};
    // The first box of the second program.
    std::uint32_t cut = 0;
    for (std::uint32_t i = 0; i < count / 2; ++i) cut += all.box_of_move[i] >= 0 ? 1 : 0;
    const std::vector<ProgramRange> digests{{0, cut}, {cut, boxes - cut}};
    const CudaDigestedMoves programs(into, {all.moves, moves, all.boxes, digests, all.box_of_move},
                                     {packs ? &from : &to, 1}, {&from, 1});
    for (std::size_t p = 0; p < 2; ++p) {
      programs.run(p, packs ? to : from, sums, blocks(), nullptr);
      programs.run_rest(p, sums, blocks(), nullptr);
    }
    const std::byte* const read = source.host.data();
    std::byte* const written = target.host.data();
    packs ? host->pack(all.moves, {&read, 1}, written) : host->unpack(all.moves, read, {&written, 1});
    ASSERT_TRUE(target.download() == target.host);
    std::vector<std::uint64_t> expected(all.boxes.size());
    host->digest(all.boxes, {&read, 1}, expected);
    const Bytes found = results.download();
    ASSERT_EQ(std::memcmp(found.data(), expected.data(), found.size()), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Grids, CudaExecutor, ::testing::Values(1, 33, 1000));

TEST(CudaSynthetic, FillsWhatTheHostFills) {
  WEIGHTCAST_NEEDS_GPUS(1);
  for (const DTypeInfo& info : dtype_table()) {
    const Tensor tensor{"model.layers.0.mlp.gate.weight", info.dtype, {40, 1000}};
    constexpr std::int64_t kFirst = 12'345;
    constexpr std::int64_t kCount = 20'001;
    Twin filled(Bytes(static_cast<std::size_t>(kCount * info.bytes)));
    fill_synthetic_on_device(tensor, 7, kFirst, kCount, filled.device(), nullptr);
    fill_synthetic(tensor, 7, kFirst, filled.host);
    EXPECT_TRUE(filled.download() == filled.host) << info.name;
  }
}

}  // namespace

}  // namespace weightcast
