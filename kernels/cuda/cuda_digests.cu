#include "kernels/cuda/cuda_digests.hpp"

#include <cstdint>
#include <optional>
#include <utility>

#include "core/float_bits.hpp"
#include "core/negated_exp.hpp"
#include "core/one_more.hpp"
#include "kernels/cuda/common_unit.hpp"
#include "kernels/cuda/launches.hpp"
#include "kernels/digest.hpp"

namespace weightcast {

/// Where the bytes of a box lie: it begins at row `row`, byte `byte` of a matrix. Rows that lie a pitch apart
/// have a layout, too.
struct DigestPlace {
  std::byte* address;  ///< of the matrix
  MatrixLayout layout;
  std::int64_t row;
  std::int64_t byte;
};

struct DeviceBox {
  DigestPlace from;
  Box box;
  // Of rows and of columns (digest_key).
  std::uint64_t row_base;
  std::uint64_t row_factor;
  std::uint64_t column_base;
  std::uint64_t column_factor;
  std::int64_t element_bytes;
  std::uint32_t unit;    ///< as of a move
  std::uint32_t result;  ///< number of the sum
  bool negated_exp;      ///< as of a DigestBox
  bool one_more;
  bool staged;     ///< the address of `to` is a distance from staging's beginning
  DigestPlace to;  ///< of a copy
  DigestCut cut;
};

namespace {

// How it works. The sum over a row is one of bytes: byte b of it has the weight key(element) << 8 · (place in
// the element), and each of the eight bytes of a weight is multiplied for itself. So rows are a matrix of
// bytes, weights one of eight columns, and what the tensor cores make of both are eight sums for each row,
// which become one number when each is shifted to its place and multiplied by the row's key. No sum is as
// large as 2^32: a strip has kStripBytes bytes.
//
// A warp has a strip of columns, of some rows. Four lanes read 64 bytes side by side in each of eight rows;
// how the tensor cores number a row's bytes does not matter, as long as weights are numbered alike. What
// belongs to a row (where it lies, its key) one lane computes and the others get by a shuffle.

constexpr int kUnitBytes = DigestCut::kUnitBytes;
constexpr int kUnits = static_cast<int>(DigestCut::kStripBytes) / kUnitBytes;
constexpr int kMembers = 4;  ///< lanes side by side
constexpr int kGroups = 8;   ///< of lanes; bytes of a weight, too
constexpr int kRowsOnce = 2 * kGroups;
constexpr int kMostKeys = kUnits * kUnitBytes / 2;  ///< of a strip: elements of two bytes
static_assert(DigestCut::kUnitRows == kWarp && kWarp == 2 * kRowsOnce);

/// Adds the products of 16 rows of 32 bytes and of one byte of each of their weights to `sums`.
__device__ inline void multiply_bytes(std::uint32_t (&sums)[4], std::uint32_t upper, std::uint32_t lower,
                                      std::uint32_t upper_next, std::uint32_t lower_next,
                                      std::uint32_t weights, std::uint32_t weights_next) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(upper), "r"(lower), "r"(upper_next), "r"(lower_next), "r"(weights), "r"(weights_next));
}

/// Where a thread is in its warp.
struct Lane {
  int thread = static_cast<int>(threadIdx.x) % kWarp;
  int group = thread / kMembers;
  int member = thread % kMembers;
};

/// What the lanes of a warp tell each other about a strip.
struct Shared {
  uint4 weights[kUnits][kWarp];  ///< of each lane's 16 bytes: of each byte the weight's byte of the group
  std::uint64_t keys[kMostKeys];
};

/// Fills `shared` for the strip that begins `first_byte` bytes into the box's rows. Rare enough to be called:
/// its registers are not the loop's.
__device__ __noinline__ void make_weights(const DeviceBox& box, std::int64_t first_byte, Shared& shared,
                                          Lane lane) {
  // Elements of one byte share a column's key by fours, from a multiple of four on.
  const bool bytes = box.element_bytes == 1;
  const std::int64_t first_column = box.box.col + first_byte / box.element_bytes;
  const std::int64_t first = bytes ? first_column / 4 : first_column;
  const int count =
      bytes ? kUnits * kUnitBytes / 4 + 1 : kUnits * kUnitBytes / static_cast<int>(box.element_bytes);
  __syncwarp();
  for (int i = lane.thread; i < count; i += kWarp) {
    shared.keys[i] = digest_key(box.column_base, box.column_factor, first + i);
  }
  __syncwarp();
  // Shifted so far, a key has the group's byte at its top, and below it those of the bytes before.
  const int shift = 8 * (kGroups - 1 - lane.group);
  const auto top = [&](int key) { return static_cast<std::uint32_t>(shared.keys[key] << shift >> 32); };
  const auto low = [&](int key) { return static_cast<std::uint32_t>(shared.keys[key] << shift); };
  const auto word = [&](int byte) {
    switch (box.element_bytes) {
      case 1: {
        const int place = static_cast<int>(first_column % 4) + byte;
        std::uint32_t all = 0;
        for (int j = 0; j < 4; ++j) {
          all |= (top((place + j) / 4) >> 8 * (3 - (place + j) % 4) & 0xffu) << 8 * j;
        }
        return all;
      }
      case 2:
        return __byte_perm(top(byte / 2), top(byte / 2 + 1), 0x6723);
      case 4:
        return __byte_perm(top(byte / 4), 0, 0x0123);
      default:
        return __byte_perm(byte % 8 == 0 ? top(byte / 8) : low(byte / 8), 0, 0x0123);
    }
  };
#pragma unroll 1
  for (int unit = 0; unit < kUnits; ++unit) {
    const int byte = unit * kUnitBytes + 16 * lane.member;
    shared.weights[unit][lane.thread] = uint4{word(byte), word(byte + 4), word(byte + 8), word(byte + 12)};
  }
}

/// Four words of a row from byte `at` of the box on, or as many as there are; what is missing is zero.
__device__ inline uint4 load_words(const DeviceBox& box, const std::byte* row, std::int64_t at, int bytes) {
  std::uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (4 * i >= bytes) continue;
    words[i] = __ldcs(reinterpret_cast<const std::uint32_t*>(
        row + box.from.layout.byte_offset(box.from.byte + at + std::int64_t{4} * i)));
  }
  return uint4{words[0], words[1], words[2], words[3]};
}

/// 16 bytes of a row from byte `at` of the box on, or as many as there are; what is missing is zero.
__device__ __noinline__ uint4 load_in_parts(const DeviceBox& box, const std::byte* row, std::int64_t at,
                                            int bytes) {
  union {
    uint4 vector;
    std::byte parts[16];
  } value;
  value.vector = uint4{0, 0, 0, 0};
  const std::uint32_t all = box.unit | static_cast<std::uint32_t>(bytes);
  const std::uint32_t unit = all & -all;
  for (std::uint32_t i = 0; i < static_cast<std::uint32_t>(bytes); i += unit) {
    const std::byte* const from = row + box.from.layout.byte_offset(box.from.byte + at + i);
    switch (unit) {
      case 16:
        return __ldcs(reinterpret_cast<const uint4*>(from));
      case 8:
        *reinterpret_cast<uint2*>(value.parts + i) = __ldcs(reinterpret_cast<const uint2*>(from));
        break;
      case 4:
        *reinterpret_cast<unsigned*>(value.parts + i) = __ldcs(reinterpret_cast<const unsigned*>(from));
        break;
      case 2:
        *reinterpret_cast<unsigned short*>(value.parts + i) =
            __ldcs(reinterpret_cast<const unsigned short*>(from));
        break;
      default:
        value.parts[i] = *from;
        break;
    }
  }
  return value.vector;
}

/// How a warp works on its strip: 16 bytes are read at once, and those of a row lie side by side, or a layout
/// has placed them; or words are read, as of scales; or whatever can be read at once, however it lies.
enum class Access : std::uint8_t { kSideBySide, kPlaced, kWords, kInParts };

/// What a lane holds of 16 rows: 16 bytes of each unit of the row that has its group's number, and of the row
/// eight below.
struct Values {
  uint4 upper[kUnits];
  uint4 lower[kUnits];
};

/// The columns of a strip on one side of it.
template <Access A>
class Columns {
 public:
  /// `first`: the lane's first byte in the box's rows.
  __device__ Columns(const DigestPlace& place, std::int64_t first) {
    if constexpr (A == Access::kPlaced) {
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) {
        offset_[unit] = place.layout.byte_offset(place.byte + first + unit * kUnitBytes);
      }
    } else {
      offset_[0] = place.byte + first;
    }
  }
  __device__ std::int64_t operator[](int unit) const {
    return A == Access::kPlaced ? offset_[unit] : offset_[0] + unit * kUnitBytes;
  }

 private:
  std::int64_t offset_[A == Access::kPlaced ? kUnits : 1];
};

/// A strip of some rows of a box, as a lane sees it.
struct Strip {
  const DeviceBox& box;
  std::int64_t first_row;
  std::int64_t first_byte;  ///< the lane's first
  int rows;
  int bytes;  ///< from there on; may be negative
  Lane lane;

  /// Where row `row` of the strip lies, if that is the lane's own.
  __device__ std::uint64_t own_row(const DigestPlace& place, int row) const {
    return reinterpret_cast<std::uint64_t>(place.address) +
           static_cast<std::uint64_t>(place.layout.row_offset(place.row + first_row + row + lane.thread));
  }
  __device__ std::uint64_t own_key(int row) const {
    return digest_key(box.row_base, box.row_factor, box.box.row + first_row + row + lane.thread);
  }
};

/// Reads 16 rows from row `row` on; `own` is where the rows of the batch lie that it is in.
template <Access A>
__device__ void load(const Strip& strip, const Columns<A>& columns, std::uint64_t own, int row,
                     Values& into) {
  const int first = row % kWarp + strip.lane.group;
  const auto* const upper = reinterpret_cast<const std::byte*>(__shfl_sync(~0u, own, first));
  const auto* const lower = reinterpret_cast<const std::byte*>(__shfl_sync(~0u, own, first + kGroups));
  const bool has_upper = row + strip.lane.group < strip.rows;
  const bool has_lower = row + strip.lane.group + kGroups < strip.rows;
#pragma unroll
  for (int unit = 0; unit < kUnits; ++unit) {
    into.upper[unit] = uint4{0, 0, 0, 0};
    into.lower[unit] = uint4{0, 0, 0, 0};
    const int at = unit * kUnitBytes;
    if (at >= strip.bytes) continue;
    if constexpr (A == Access::kWords) {
      const int bytes = strip.bytes - at;
      if (has_upper) into.upper[unit] = load_words(strip.box, upper, strip.first_byte + at, bytes);
      if (has_lower) into.lower[unit] = load_words(strip.box, lower, strip.first_byte + at, bytes);
    } else if constexpr (A == Access::kInParts) {
      const int bytes = min(16, strip.bytes - at);
      if (has_upper) into.upper[unit] = load_in_parts(strip.box, upper, strip.first_byte + at, bytes);
      if (has_lower) into.lower[unit] = load_in_parts(strip.box, lower, strip.first_byte + at, bytes);
    } else {
      if (has_upper) into.upper[unit] = __ldcs(reinterpret_cast<const uint4*>(upper + columns[unit]));
      if (has_lower) into.lower[unit] = __ldcs(reinterpret_cast<const uint4*>(lower + columns[unit]));
    }
  }
}

/// Writes them likewise.
template <Access A>
__device__ void store(const Strip& strip, const Columns<A>& columns, std::uint64_t own, int row,
                      const Values& values) {
  const int first = row % kWarp + strip.lane.group;
  auto* const upper = reinterpret_cast<std::byte*>(__shfl_sync(~0u, own, first));
  auto* const lower = reinterpret_cast<std::byte*>(__shfl_sync(~0u, own, first + kGroups));
  const bool has_upper = row + strip.lane.group < strip.rows;
  const bool has_lower = row + strip.lane.group + kGroups < strip.rows;
#pragma unroll
  for (int unit = 0; unit < kUnits; ++unit) {
    if (unit * kUnitBytes >= strip.bytes) continue;
    if (has_upper) __stcs(reinterpret_cast<uint4*>(upper + columns[unit]), values.upper[unit]);
    if (has_lower) __stcs(reinterpret_cast<uint4*>(lower + columns[unit]), values.lower[unit]);
  }
}

/// The sum of `values`, which are of row `row` of the strip on; every lane has its share. `own_key`: of the
/// batch's rows.
__device__ std::uint64_t sum_of(const Values& values, const uint4 (&weights)[kUnits], std::uint64_t own_key,
                                int row, Lane lane) {
  std::uint32_t sums[4] = {0, 0, 0, 0};
#pragma unroll
  for (int unit = 0; unit < kUnits; ++unit) {
    const uint4 upper = values.upper[unit];
    const uint4 lower = values.lower[unit];
    const uint4 weight = weights[unit];
    multiply_bytes(sums, upper.x, lower.x, upper.y, lower.y, weight.x, weight.y);
    multiply_bytes(sums, upper.z, lower.z, upper.w, lower.w, weight.z, weight.w);
  }
  // Of each of both rows a lane has the sums of two bytes of weights.
  const auto two = [](std::uint32_t low, std::uint32_t high) { return low + (std::uint64_t{high} << 8); };
  const int first = row % kWarp + lane.group;
  return two(sums[0], sums[1]) * __shfl_sync(~0u, own_key, first) +
         two(sums[2], sums[3]) * __shfl_sync(~0u, own_key, first + kGroups);
}

/// The part of a box's digest that belongs to a strip; every lane has its share.
template <Access A>
__device__ std::uint64_t digest_strip(const Strip& strip, const uint4 (&weights)[kUnits]) {
  const DigestPlace& from = strip.box.from;
  const Columns<A> columns(from, strip.first_byte);
  std::uint64_t sum = 0;
  for (int row = 0; row < strip.rows; row += kWarp) {
    const std::uint64_t own_key = strip.own_key(row);
    const std::uint64_t own = strip.own_row(from, row);
#pragma unroll
    for (int half = 0; half < kWarp; half += kRowsOnce) {
      Values values;
      load(strip, columns, own, row + half, values);
      sum += sum_of(values, weights, own_key, row + half, strip.lane);
    }
  }
  return sum;
}

/// The same of rows whose bytes lie side by side: the next ones are read while some are multiplied.
template <>
__device__ std::uint64_t digest_strip<Access::kSideBySide>(const Strip& strip,
                                                           const uint4 (&weights)[kUnits]) {
  const DigestPlace& from = strip.box.from;
  const Columns<Access::kSideBySide> columns(from, strip.first_byte);
  std::uint64_t sum = 0;
  std::uint64_t own = strip.own_row(from, 0);
  Values even;
  load(strip, columns, own, 0, even);
  for (int row = 0; row < strip.rows; row += kWarp) {
    Values odd;
    load(strip, columns, own, row + kRowsOnce, odd);
    const std::uint64_t own_key = strip.own_key(row);
    sum += sum_of(even, weights, own_key, row, strip.lane);
    own = strip.own_row(from, row + kWarp);
    load(strip, columns, own, row + kWarp, even);
    sum += sum_of(odd, weights, own_key, row + kRowsOnce, strip.lane);
  }
  return sum;
}

/// The same of a strip that is copied.
template <Access A>
__device__ std::uint64_t copy_strip(const Strip& strip, const uint4 (&weights)[kUnits], std::byte* staging) {
  const DigestPlace& from = strip.box.from;
  const DigestPlace& to = strip.box.to;
  const std::uint64_t base = strip.box.staged ? reinterpret_cast<std::uint64_t>(staging) : 0;
  const Columns<A> columns(from, strip.first_byte);
  const Columns<A> target(to, strip.first_byte);
  std::uint64_t sum = 0;
  for (int row = 0; row < strip.rows; row += kWarp) {
    const std::uint64_t own_key = strip.own_key(row);
    const std::uint64_t own_from = strip.own_row(from, row);
    const std::uint64_t own_to = base + strip.own_row(to, row);
#pragma unroll
    for (int half = 0; half < kWarp; half += kRowsOnce) {
      Values values;
      load(strip, columns, own_from, row + half, values);
      sum += sum_of(values, weights, own_key, row + half, strip.lane);
      store(strip, target, own_to, row + half, values);
    }
  }
  return sum;
}

/// What a tile is of its box.
struct Extent {
  std::int64_t first_row;
  std::int64_t first_byte;
  int rows;
  int bytes;  ///< of a row

  __device__ Extent(const DeviceBox& box, std::uint32_t chunk) {
    const auto strips = static_cast<std::uint32_t>(box.cut.strips);
    const std::uint32_t row_chunk = chunk / strips;
    first_row = std::int64_t{row_chunk} * box.cut.rows_each;
    first_byte = std::int64_t{chunk - row_chunk * strips} * box.cut.strip_bytes;
    rows = static_cast<int>(min(box.cut.rows_each, box.box.rows - first_row));
    bytes = static_cast<int>(min(box.cut.strip_bytes, box.box.cols * box.element_bytes - first_byte));
  }
};

/// The bits of what is computed of an element x of a box, which is float32 or bfloat16: 1 more in the same
/// type, or −e^x in float32.
__device__ std::uint32_t computed_bits(const DeviceBox& box, const std::byte* at) {
  if (box.element_bytes == 2) {
    std::uint16_t bits;
    memcpy(&bits, at, 2);
    return box.one_more ? one_more_bf16(bits) : negated_exp_bits(bf16_value(bits));
  }
  float value;
  memcpy(&value, at, 4);
  return box.one_more ? one_more_bits(value) : negated_exp_bits(value);
}

/// The same of what is computed of the elements, without a layout. There are few of them in a model: one
/// after the other.
__device__ __noinline__ std::uint64_t digest_computed(const DeviceBox& box, Extent extent) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t first = extent.first_byte / box.element_bytes;
  const std::int64_t end = first + extent.bytes / box.element_bytes;
  std::uint64_t sum = 0;
  for (std::int64_t row = extent.first_row; row < extent.first_row + extent.rows; ++row) {
    std::uint64_t dot = 0;
    for (std::int64_t col = first + lane; col < end; col += kWarp) {
      const std::byte* const at =
          box.from.address + box.from.layout.row_offset(row) + col * box.element_bytes;
      dot += digest_key(box.column_base, box.column_factor, box.box.col + col) * computed_bits(box, at);
    }
    sum += dot * digest_key(box.row_base, box.row_factor, box.box.row + row);
  }
  return sum;
}

template <Access A, bool Copies>
__device__ std::uint64_t digest_tile(const DeviceBox& box, Extent extent, Shared& shared,
                                     std::byte* staging) {
  const Lane lane;
  make_weights(box, extent.first_byte, shared, lane);
  uint4 weights[kUnits];
#pragma unroll
  for (int unit = 0; unit < kUnits; ++unit) weights[unit] = shared.weights[unit][lane.thread];
  const int own = 16 * lane.member;
  const Strip strip{box, extent.first_row, extent.first_byte + own, extent.rows, extent.bytes - own, lane};
  std::uint64_t sum = 0;
  if constexpr (Copies) {
    sum = copy_strip<A>(strip, weights, staging);
  } else {
    sum = digest_strip<A>(strip, weights);
  }
  return sum << (16 * lane.member);
}

/// What is rare takes no registers from the rest.
template <Access A>
__device__ __noinline__ std::uint64_t digest_rare_tile(const DeviceBox& box, Extent extent, Shared& shared) {
  return digest_tile<A, false>(box, extent, shared, nullptr);
}

template <bool Copies>
__device__ std::uint64_t digest_chunk(const DeviceBox& box, std::uint32_t chunk, Shared& shared,
                                      std::byte* staging) {
  const Extent extent(box, chunk);
  if constexpr (Copies) {
    return box.from.layout.unit_step == 0 && box.to.layout.unit_step == 0
               ? digest_tile<Access::kSideBySide, true>(box, extent, shared, staging)
               : digest_tile<Access::kPlaced, true>(box, extent, shared, staging);
  } else {
    if (box.negated_exp || box.one_more) return digest_computed(box, extent);
    if (box.unit < 16 || extent.bytes % 16 != 0) {
      return box.unit >= 4 && extent.bytes % 4 == 0 ? digest_rare_tile<Access::kWords>(box, extent, shared)
                                                    : digest_rare_tile<Access::kInParts>(box, extent, shared);
    }
    return box.from.layout.unit_step == 0
               ? digest_tile<Access::kSideBySide, false>(box, extent, shared, nullptr)
               : digest_tile<Access::kPlaced, false>(box, extent, shared, nullptr);
  }
}

template <bool Copies>
__global__ void __launch_bounds__(kThreads, 1)
    run_digests(const DeviceBox* boxes, const DigestTile* tiles, std::uint32_t count, std::uint64_t* results,
                std::byte* staging) {
  __shared__ Shared shared[kThreads / kWarp];
  const std::uint32_t warp = threadIdx.x / kWarp;
  const std::uint32_t warps = gridDim.x * (kThreads / kWarp);
  std::uint32_t t = blockIdx.x * (kThreads / kWarp) + warp;
  if (t >= count) return;
  for (DigestTile next = tiles[t]; t < count; t += warps) {
    const DigestTile tile = next;
    if (t + warps < count) next = tiles[t + warps];
    const DeviceBox& box = boxes[tile.box];
    std::uint64_t sum = digest_chunk<Copies>(box, tile.chunk, shared[warp], staging);
    for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_down_sync(~0u, sum, step);
    if (threadIdx.x % kWarp == 0) {
      atomicAdd(reinterpret_cast<unsigned long long*>(results + box.result),
                static_cast<unsigned long long>(sum));
    }
  }
}

MatrixLayout pitched(std::int64_t pitch) {
  MatrixLayout layout;
  layout.step[3] = pitch;
  return layout;
}

DigestPlace place_of(std::byte* address, std::int64_t pitch, const MatrixLayout& layout, std::int64_t row,
                     std::int64_t byte) {
  if (layout.plain()) return {address, pitched(pitch), 0, 0};
  return {address, layout, row, byte};
}

/// The widest vector that everything in a place is a multiple of.
std::uint32_t unit_of(const DigestPlace& place) {
  return common_unit(place.address, {place.byte, all_steps(place.layout)});
}

DeviceBox resolve(const DigestBox& box, std::byte* address, std::uint32_t result) {
  DeviceBox made{};
  made.box = box.box;
  made.row_base = box.tensor_key;
  made.row_factor = kDigestRowFactor;
  made.column_base = ~box.tensor_key;
  made.column_factor = kDigestColumnFactor;
  made.element_bytes = box.element_bytes;
  made.result = result;
  made.negated_exp = box.negated_exp;
  made.one_more = box.one_more;
  if (swaps_axes(box)) {
    made.box = {box.box.col, box.box.cols, box.box.row, box.box.rows};
    std::swap(made.row_base, made.column_base);
    std::swap(made.row_factor, made.column_factor);
    made.from = {address + box.layout.row_offset(box.row) + box.layout.byte_offset(box.byte),
                 pitched(box.layout.unit_step), 0, 0};
  } else {
    made.from = place_of(address, box.pitch, box.layout, box.row, box.byte);
    if (consists_of_words(box.box, box.element_bytes, box.layout, box.byte)) {
      made.box = in_words(box.box);
      made.element_bytes = 4;
    }
  }
  made.unit = unit_of(made.from);
  made.cut = DigestCut(made.box.rows, made.box.cols * made.element_bytes);
  return made;
}

/// What digests `box` while it does `move`, which reads the same bytes; nothing where either side cannot be
/// reached 16 bytes at once.
std::optional<DeviceBox> resolve_copy(const DigestBox& box, std::uint32_t result, const Move& move,
                                      CudaDigestedMoves::Into into, std::span<std::byte* const> buffers,
                                      std::span<std::byte* const> digested) {
  constexpr std::uint32_t kVector = 16;
  const bool same = box.layout.plain() && !box.widened && !box.negated_exp && !box.one_more &&
                    move.op == MoveOp::kCopy && box.box.rows == move.rows &&
                    box.box.cols * box.element_bytes == move.row_bytes;
  if (!same || move.row_bytes % kVector != 0) return std::nullopt;
  DeviceBox made = resolve(box, digested[box.buffer] + box.offset, result);
  if (into == CudaDigestedMoves::Into::kStaging) {
    if (!move.layout.plain()) return std::nullopt;
    made.staged = true;
    made.to = {reinterpret_cast<std::byte*>(move.staging), pitched(move.staging_step()), 0, 0};
  } else {
    made.to = place_of(buffers[move.buffer] + move.offset, move.pitch, move.layout, move.row, move.byte);
  }
  if (made.unit < kVector || unit_of(made.to) < kVector) return std::nullopt;
  return made;
}

}  // namespace

CudaDigestPrograms::CudaDigestPrograms(std::span<const DigestBox> boxes,
                                       std::span<const ProgramRange> programs,
                                       std::span<std::byte* const> buffers)
    : CudaDigestPrograms(boxes, programs, buffers, {}) {}

CudaDigestPrograms::CudaDigestPrograms(std::span<const DigestBox> boxes,
                                       std::span<const ProgramRange> programs,
                                       std::span<std::byte* const> buffers,
                                       std::span<const std::uint32_t> results) {
  std::vector<DeviceBox> resolved;
  resolved.reserve(boxes.size());
  for (const DigestBox& box : boxes) {
    const std::size_t number = resolved.size();
    resolved.push_back(resolve(box, buffers[box.buffer] + box.offset,
                               results.empty() ? static_cast<std::uint32_t>(number) : results[number]));
  }
  set(boxes, programs, resolved);
}

void CudaDigestPrograms::set(std::span<const DigestBox> boxes, std::span<const ProgramRange> programs,
                             std::span<const DeviceBox> resolved) {
  boxes_ = DeviceArray<DeviceBox>(resolved);
  const std::vector<DigestTile> tiles = tile_all<DigestTile>(boxes, programs, launches_);
  tiles_ = DeviceArray<DigestTile>(std::span<const DigestTile>(tiles));
}

template <bool Copies>
void CudaDigestPrograms::launch(std::size_t program, std::uint64_t* results, std::byte* staging, int blocks,
                                cudaStream_t stream) const {
  const ProgramRange& launch = launches_[program];
  if (launch.count == 0) return;
  constexpr std::uint32_t kWarps = kThreads / kWarp;
  run_digests<Copies><<<grid((launch.count + kWarps - 1) / kWarps, blocks), kThreads, 0, stream>>>(
      boxes_.data(), tiles_.data() + launch.first, launch.count, results, staging);
  WEIGHTCAST_CUDA(cudaGetLastError());
}

void CudaDigestPrograms::run(std::size_t program, std::uint64_t* results, int blocks,
                             cudaStream_t stream) const {
  launch<false>(program, results, nullptr, blocks, stream);
}

CudaDigestedMoves::CudaDigestedMoves(Into into, const DigestedMoves& all, std::span<std::byte* const> buffers,
                                     std::span<std::byte* const> digested)
    : into_(into) {
  std::vector<bool> made(all.boxes.size(), false);
  std::vector<Move> moves;
  std::vector<ProgramRange> move_programs;
  std::vector<DigestBox> copied;
  std::vector<DeviceBox> resolved;
  std::vector<ProgramRange> copy_programs;
  for (const ProgramRange& program : all.move_programs) {
    const auto first_move = static_cast<std::uint32_t>(moves.size());
    const auto first_copy = static_cast<std::uint32_t>(copied.size());
    for (std::uint32_t i = program.first; i < program.first + program.count; ++i) {
      const Move& move = all.moves[i];
      const std::int64_t number = all.box_of_move[i];
      const DigestBox* const box = number < 0 ? nullptr : &all.boxes[static_cast<std::size_t>(number)];
      std::optional<DeviceBox> copy;
      if (box != nullptr && !made[static_cast<std::size_t>(number)]) {
        copy = resolve_copy(*box, static_cast<std::uint32_t>(number), move, into, buffers, digested);
      }
      if (!copy) {
        moves.push_back(move);
        continue;
      }
      made[static_cast<std::size_t>(number)] = true;
      copied.push_back(*box);
      resolved.push_back(*copy);
    }
    move_programs.push_back({first_move, static_cast<std::uint32_t>(moves.size()) - first_move});
    copy_programs.push_back({first_copy, static_cast<std::uint32_t>(copied.size()) - first_copy});
  }
  copies_.set(copied, copy_programs, resolved);
  moves_ = CudaMovePrograms(moves, move_programs, buffers);
  std::vector<DigestBox> rest;
  std::vector<std::uint32_t> results;
  std::vector<ProgramRange> rest_programs;
  for (const ProgramRange& program : all.box_programs) {
    const auto first = static_cast<std::uint32_t>(rest.size());
    for (std::uint32_t i = program.first; i < program.first + program.count; ++i) {
      if (made[i]) continue;
      rest.push_back(all.boxes[i]);
      results.push_back(i);
    }
    rest_programs.push_back({first, static_cast<std::uint32_t>(rest.size()) - first});
  }
  rest_ = CudaDigestPrograms(rest, rest_programs, digested, results);
}

void CudaDigestedMoves::run(std::size_t program, std::byte* staging, std::uint64_t* results, int blocks,
                            cudaStream_t stream) const {
  copies_.launch<true>(program, results, staging, blocks, stream);
  into_ == Into::kStaging ? moves_.pack(program, staging, blocks, stream)
                          : moves_.unpack(program, staging, blocks, stream);
}

}  // namespace weightcast
