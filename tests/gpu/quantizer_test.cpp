// Quantiser moves on the device beside the host's: the same bytes and the same digests.

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/units.hpp"
#include "gpu.hpp"
#include "kernels/cuda/cuda_quantizer.hpp"
#include "kernels/executor.hpp"
#include "twin.hpp"

namespace weightcast {

using gpu_test::Bytes;
using gpu_test::device_pointers;
using gpu_test::Random;
using gpu_test::Twin;

namespace {

constexpr std::uint32_t kScopes = 3;

/// What the values of a move are like.
enum class Kind : std::uint8_t { kWeights, kAnyBits, kTiny, kHuge, kSpecial, kZeros, kLast = kZeros };

std::uint16_t random_value(Random& random, Kind kind) {
  const auto sign = static_cast<std::uint16_t>(random.between(0, 1) << 15);
  const auto positive = [&](std::int64_t low, std::int64_t high) {
    return static_cast<std::uint16_t>(sign | random.between(low, high));
  };
  switch (kind) {
    case Kind::kWeights:
      return positive(0x3a00, 0x3dff);
    case Kind::kAnyBits:
      return positive(0, 0x7fff);
    case Kind::kTiny:
      return positive(0, 0x0180);
    case Kind::kHuge:
      return positive(0x7e00, 0x7f7f);
    case Kind::kZeros:
      return sign;
    case Kind::kSpecial:
      break;
  }
  if (!random.one_in(8)) return positive(0x3a00, 0x3dff);
  switch (random.between(0, 4)) {
    case 0:
      return positive(0x7f80, 0x7f80);
    case 1:
      return positive(0x7f81, 0x7fff);
    case 2:
      return positive(1, 0x7f);
    case 3:
      return positive(0x7f00, 0x7f7f);
    default:
      return sign;
  }
}

/// Memory of each space, as moves are placed in it one behind the other.
struct Spaces {
  static constexpr std::size_t kBuffers = 2;
  std::vector<std::int64_t> sources = std::vector<std::int64_t>(kBuffers, 0);
  std::vector<std::int64_t> parameters = std::vector<std::int64_t>(kBuffers, 0);
  std::int64_t staging = 0;

  std::int64_t& end(const MatrixPlace& place) {
    if (place.space == Space::kStaging) return staging;
    return (place.space == Space::kSource ? sources : parameters)[place.buffer];
  }
};

std::uint8_t bits(Random& random, std::int64_t low, std::int64_t high) {
  return static_cast<std::uint8_t>(random.between(low, high));
}

/// A layout for a matrix of `rows` rows that are as wide as `row_bytes`: transposed in units, rows in a
/// shuffled order, the same in blocks of K, or scales as the tensor cores take them.
MatrixLayout random_layout(Random& random, std::int64_t rows, std::int64_t row_bytes, std::int64_t element) {
  const std::int64_t padded = (rows + 255) / 256 * 256;
  MatrixLayout layout;
  switch (random.between(0, 3)) {
    case 0:
      layout.unit_bits = static_cast<std::uint8_t>(std::countr_zero(static_cast<std::uint64_t>(element)));
      layout.step[3] = element;
      layout.unit_step = padded * element;
      break;
    case 1: {
      const std::int64_t pitch = (row_bytes + 15) / 16 * 16 + (random.one_in(3) ? random.between(0, 9) : 0);
      layout.bits[0] = bits(random, 1, 2);
      layout.bits[1] = 3;
      layout.step[0] = (32 >> layout.bits[0]) * pitch;
      layout.step[1] = pitch;
      layout.step[3] = 32 * pitch;
      break;
    }
    case 2:
      layout.unit_bits = bits(random, 2, 7);
      layout.bits[0] = bits(random, 0, 2);
      layout.bits[1] = bits(random, 0, 3);
      layout.step[0] = layout.unit_bytes() << layout.bits[1];
      layout.step[1] = layout.unit_bytes();
      layout.step[3] = layout.unit_bytes() << (layout.bits[0] + layout.bits[1]);
      layout.unit_step = padded * layout.unit_bytes();
      break;
    default:
      // 128 × 4 bytes together, of which rows 32 apart are neighbours.
      layout.unit_bits = 2;
      layout.bits[0] = 5;
      layout.bits[1] = 2;
      layout.step[0] = 16;
      layout.step[1] = 4;
      layout.step[3] = ceil_div(row_bytes, 4) * 512;
      layout.unit_step = 512;
      break;
  }
  return layout;
}

/// Puts a plane of a move somewhere, or nowhere.
MatrixPlace random_place(Random& random, Spaces& spaces, std::int64_t rows, std::int64_t row_bytes,
                         std::int64_t element) {
  MatrixPlace place;
  if (random.one_in(8)) return place;
  place.space = random.one_in(2) ? Space::kStaging : Space::kParameter;
  if (place.space == Space::kParameter) {
    place.buffer = static_cast<std::uint32_t>(random.between(0, Spaces::kBuffers - 1));
  }
  std::int64_t& end = spaces.end(place);
  const std::int64_t unit = std::int64_t{1} << random.between(0, 5);
  place.offset = round_up(end, unit) + unit * random.between(0, 3);
  if (random.one_in(2)) {
    place.pitch = round_up(row_bytes, unit) + unit * random.between(0, 3);
    end = place.offset + rows * place.pitch;
    return place;
  }
  place.row = random.one_in(2) ? 0 : random.between(0, 200);
  place.byte = element * (random.one_in(2) ? 16 * random.between(0, 8) : random.between(0, 70));
  place.layout = random_layout(random, place.row + rows, place.byte + row_bytes, element);
  end = place.offset + place.layout.extent(place.row + rows, place.byte + row_bytes);
  // A place of less rows than its matrix has holes, and ends of units that nobody writes.
  end += 256;
  return place;
}

/// Moves of one quantiser that write to places of their own, cut into programs.
struct RandomQuants {
  std::vector<QuantMove> moves;
  std::vector<ProgramRange> programs;
  std::vector<Kind> kinds;
  Spaces spaces;

  RandomQuants(Random& random, Quantizer quantizer, std::int64_t most_rows) {
    const std::int64_t count = random.between(1, 12);
    for (std::int64_t i = 0; i < count; ++i) add(random, quantizer, most_rows);
    for (std::uint32_t first = 0; first < moves.size();) {
      const auto left = static_cast<std::int64_t>(moves.size()) - first;
      const auto taken = static_cast<std::uint32_t>(random.between(0, left));
      programs.push_back({first, taken});
      first += taken;
    }
  }

  void add(Random& random, Quantizer quantizer, std::int64_t most_rows) {
    const QuantScheme scheme = quantizer.scheme;
    QuantMove move;
    move.quantizer = quantizer;
    move.rows = random.one_in(3) ? 128 * random.between(1, 2) : random.between(1, most_rows);
    move.cols = random.one_in(2) ? 16 * random.between(1, 40) : random.between(1, 700);
    if (block_cols(scheme) == 0 && scheme == QuantScheme::kFp8Channel && random.one_in(2)) {
      move.cols_before = random.one_in(2) ? 8 * random.between(0, 40) : random.between(0, 300);
      move.cols_behind = random.between(0, 300);
    }
    move.codes_box = {random.between(0, 100'000), move.rows, random.between(0, 100'000),
                      ceil_div(move.cols, codes_per_byte(scheme))};
    move.codes_key = key(random);
    move.scales_key = key(random);
    if (has_global(scheme)) move.scope = static_cast<std::uint32_t>(random.between(0, kScopes - 1));
    // What only asks for the largest may have one, too.
    if (!has_global(scheme) && random.one_in(2)) move.scope = 0;
    move.values.space = random.one_in(2) ? Space::kStaging : Space::kSource;
    if (move.values.space == Space::kSource) {
      move.values.buffer = static_cast<std::uint32_t>(random.between(0, Spaces::kBuffers - 1));
    }
    const std::int64_t unit = random.one_in(2) ? 16 : 2;
    std::int64_t& end = spaces.end(move.values);
    const std::int64_t row_bytes = 2 * (move.cols_before + move.cols + move.cols_behind);
    move.values.offset = round_up(end, unit) + unit * random.between(0, 3) + 2 * move.cols_before;
    move.values.pitch = round_up(row_bytes, unit) + unit * random.between(0, 3);
    end = move.values.offset + move.rows * move.values.pitch;
    move.codes = random_place(random, spaces, move.rows, move.codes_box.cols, 1);
    if (block_scale_bytes(scheme) > 0) {
      const bool exponents = scheme == QuantScheme::kFp8Block && random.one_in(2);
      move.scale_bytes = exponents ? 1 : block_scale_bytes(scheme);
      move.scale_rows = exponents && random.one_in(2) ? 1 : block_rows(scheme);
      move.scale_cols = block_cols(scheme) == 0 ? move.cols : block_cols(scheme);
      move.scales_box = {random.between(0, 10'000), ceil_div(move.rows, move.scale_rows),
                         random.between(0, 10'000), ceil_div(move.cols, move.scale_cols)};
      move.scales = random_place(random, spaces, move.scales_box.rows,
                                 move.scales_box.cols * move.scale_bytes, move.scale_bytes);
    }
    moves.push_back(move);
    kinds.push_back(static_cast<Kind>(random.between(0, static_cast<int>(Kind::kLast))));
  }

  static std::uint64_t key(Random& random) {
    return static_cast<std::uint64_t>(random.between(0, 1'000'000'000)) * 0x9e3779b97f4a7c15ull;
  }
};

/// The memory of random moves, full of rubbish but for the values, at the host and on the device.
struct Memory {
  std::vector<Twin> sources;
  std::vector<Twin> parameters;
  Twin staging;

  Memory(Random& random, const RandomQuants& quants)
      : sources(twins(random, quants.spaces.sources)),
        parameters(twins(random, quants.spaces.parameters)),
        staging(random.bytes(quants.spaces.staging + 16)) {
    for (std::size_t i = 0; i < quants.moves.size(); ++i) {
      const QuantMove& move = quants.moves[i];
      Twin& twin = move.values.space == Space::kStaging ? staging : sources[move.values.buffer];
      for (std::int64_t row = 0; row < move.rows; ++row) {
        std::byte* const values = twin.host.data() + move.values.at(row, 0);
        for (std::int64_t col = -move.cols_before; col < move.cols + move.cols_behind; ++col) {
          const std::uint16_t value = random_value(random, quants.kinds[i]);
          std::memcpy(values + 2 * col, &value, 2);
        }
      }
    }
    for (Twin& twin : sources) twin.upload();
    staging.upload();
  }

  static std::vector<Twin> twins(Random& random, const std::vector<std::int64_t>& bytes) {
    std::vector<Twin> made;
    made.reserve(bytes.size());
    for (const std::int64_t count : bytes) made.emplace_back(random.bytes(count + 16));
    return made;
  }

  /// The host's, after the host's run, against the device's.
  bool same() const {
    const auto equal = [](const Twin& twin) { return twin.download() == twin.host; };
    return equal(staging) && std::ranges::all_of(sources, equal) && std::ranges::all_of(parameters, equal);
  }

  std::vector<const std::byte*> host_sources() const {
    std::vector<const std::byte*> pointers;
    for (const Twin& twin : sources) pointers.push_back(twin.host.data());
    return pointers;
  }
  std::vector<std::byte*> host_parameters() {
    std::vector<std::byte*> pointers;
    for (Twin& twin : parameters) pointers.push_back(twin.host.data());
    return pointers;
  }
};

template <typename Element>
Bytes as_bytes(const std::vector<Element>& elements) {
  Bytes bytes(elements.size() * sizeof(Element));
  std::memcpy(bytes.data(), elements.data(), bytes.size());
  return bytes;
}

template <typename Element>
std::vector<Element> downloaded(const Twin& twin) {
  const Bytes bytes = twin.download();
  std::vector<Element> elements(bytes.size() / sizeof(Element));
  std::memcpy(elements.data(), bytes.data(), bytes.size());
  return elements;
}

class CudaQuantizer : public ::testing::TestWithParam<std::string> {
 protected:
  static constexpr int kRounds = 25;
  Quantizer quantizer() const { return parse_quantizer(GetParam()); }

  /// Runs moves of both sides, with global scales that the largest values make, and compares.
  void compare(Random& random, const RandomQuants& quants, int blocks, bool digests) const {
    Memory memory(random, quants);
    const auto host = make_host_executor();
    const std::vector<const std::byte*> sources = memory.host_sources();
    const std::vector<std::byte*> parameters = memory.host_parameters();
    const QuantBuffers buffers{sources, memory.staging.host.data(), parameters};
    const CudaQuantPrograms programs(quants.moves, quants.programs, device_pointers(memory.sources),
                                     device_pointers(memory.parameters));
    std::vector<float> largest(kScopes, 0.0f);
    largest.back() = 0.5f;
    const Twin device_largest(as_bytes(largest));
    host->find_largest(quants.moves, buffers, largest);
    for (std::size_t p = 0; p < quants.programs.size(); ++p) {
      programs.find_largest(p, memory.staging.device(), reinterpret_cast<float*>(device_largest.device()),
                            blocks, nullptr);
    }
    EXPECT_EQ(downloaded<float>(device_largest), largest);
    std::vector<GlobalScale> scales;
    scales.reserve(largest.size());
    for (const float amax : largest) scales.push_back(global_scale(quantizer(), amax));
    const Twin device_scales(as_bytes(scales));
    std::vector<QuantDigests> expected(digests ? quants.moves.size() : 0);
    host->quantize(quants.moves, buffers, scales, expected);
    // They are added to what is there.
    const std::vector<std::uint64_t> before(2 * quants.moves.size(), 7);
    const Twin results(as_bytes(before));
    for (std::size_t p = 0; p < quants.programs.size(); ++p) {
      programs.run(p, memory.staging.device(), reinterpret_cast<const GlobalScale*>(device_scales.device()),
                   digests ? reinterpret_cast<std::uint64_t*>(results.device()) : nullptr, blocks, nullptr);
    }
    ASSERT_TRUE(memory.same());
    const auto found = downloaded<std::uint64_t>(results);
    for (std::size_t i = 0; i < quants.moves.size(); ++i) {
      ASSERT_EQ(found[2 * i], 7 + (digests ? expected[i].codes : 0)) << i;
      ASSERT_EQ(found[2 * i + 1], 7 + (digests ? expected[i].scales : 0)) << i;
    }
  }
};

TEST_P(CudaQuantizer, MakesWhatTheHostMakes) {
  WEIGHTCAST_NEEDS_GPUS(1);
  Random random(11);
  for (int round = 0; round < kRounds; ++round) {
    SCOPED_TRACE(round);
    const RandomQuants quants(random, quantizer(), 300);
    const int blocks = round % 3 == 0 ? 1 : round % 3 == 1 ? 5 : 1000;
    compare(random, quants, blocks, round % 2 == 0);
    if (HasFatalFailure()) return;
  }
}

TEST_P(CudaQuantizer, WritesNothingWhereOnlyDigestsAreWanted) {
  WEIGHTCAST_NEEDS_GPUS(1);
  Random random(12);
  RandomQuants quants(random, quantizer(), 300);
  for (QuantMove& move : quants.moves) {
    move.codes = {};
    move.scales = {};
  }
  compare(random, quants, 100, true);
}

/// Values, codes and scales where the widest loads and stores are taken, whole tiles of them, and every bit
/// pattern among the values.
TEST_P(CudaQuantizer, EveryValueInWholeTiles) {
  WEIGHTCAST_NEEDS_GPUS(1);
  constexpr std::int64_t kRows = 256;
  constexpr std::int64_t kCols = 256;
  const QuantScheme scheme = quantizer().scheme;
  QuantMove move;
  move.quantizer = quantizer();
  move.rows = kRows;
  move.cols = kCols;
  move.values = {Space::kStaging, 0, 0, 2 * kCols, {}, 0, 0};
  move.codes_box = {0, kRows, 0, kCols / codes_per_byte(scheme)};
  move.codes = {Space::kParameter, 0, 0, move.codes_box.cols, {}, 0, 0};
  if (has_global(scheme)) move.scope = 0;
  if (block_scale_bytes(scheme) > 0) {
    move.scale_bytes = block_scale_bytes(scheme);
    move.scale_rows = block_rows(scheme);
    move.scale_cols = block_cols(scheme) == 0 ? kCols : block_cols(scheme);
    move.scales_box = {0, kRows / move.scale_rows, 0, kCols / move.scale_cols};
    move.scales = {Space::kParameter, 1, 0, move.scales_box.cols * move.scale_bytes, {}, 0, 0};
  }
  const ProgramRange all{0, 1};
  const std::vector<QuantMove> moves(1, move);
  Random random(13);
  // In the order of their bits, so that a block's are of a size, and shuffled within some bits of the scale.
  for (const int exponents : {0, 1, 3, 8}) {
    std::vector<std::uint16_t> values(static_cast<std::size_t>(kRows * kCols));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::uint16_t>(i << 15 | i >> 1);
    const auto run = std::min<std::int64_t>(std::ssize(values), std::int64_t{256} << exponents);
    for (std::int64_t first = 0; first < std::ssize(values); first += run) {
      for (std::int64_t i = run - 1; i > 0; --i) {
        std::swap(values[static_cast<std::size_t>(first + i)],
                  values[static_cast<std::size_t>(first + random.between(0, i))]);
      }
    }
    Twin staging(as_bytes(values));
    std::vector<Twin> parameters;
    parameters.emplace_back(random.bytes(kRows * kCols));
    parameters.emplace_back(random.bytes(kRows * kCols));
    std::vector<std::byte*> host_parameters{parameters[0].host.data(), parameters[1].host.data()};
    const std::vector<GlobalScale> scales(1, global_scale(quantizer(), 448.0f));
    const Twin device_scales(as_bytes(scales));
    make_host_executor()->quantize(moves, {{}, staging.host.data(), host_parameters}, scales, {});
    const CudaQuantPrograms programs(moves, {&all, 1}, {}, device_pointers(parameters));
    programs.run(0, staging.device(), reinterpret_cast<const GlobalScale*>(device_scales.device()), nullptr,
                 7, nullptr);
    EXPECT_TRUE(parameters[0].download() == parameters[0].host) << exponents;
    EXPECT_TRUE(parameters[1].download() == parameters[1].host) << exponents;
  }
}

TEST_P(CudaQuantizer, RefusesMovesOfAnother) {
  WEIGHTCAST_NEEDS_GPUS(1);
  Random random(14);
  RandomQuants quants(random, quantizer(), 20);
  Memory memory(random, quants);
  const std::vector<std::string> names = quantizer_names();
  quants.moves.push_back(quants.moves.back());
  quants.moves.back().quantizer = parse_quantizer(names.front() == GetParam() ? names.back() : names.front());
  EXPECT_THROW(CudaQuantPrograms(quants.moves, quants.programs, device_pointers(memory.sources),
                                 device_pointers(memory.parameters)),
               InternalError);
}

std::string test_name(const ::testing::TestParamInfo<std::string>& test) {
  std::string name = test.param;
  std::ranges::replace_if(
      name, [](char c) { return c == ':' || c == '-'; }, '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(All, CudaQuantizer, ::testing::ValuesIn(quantizer_names()), test_name);

}  // namespace

}  // namespace weightcast
