#include "kernels/cuda/cuda_moves.hpp"

#include <cstdint>

#include "core/float_bits.hpp"
#include "core/negated_exp.hpp"
#include "core/one_more.hpp"
#include "kernels/cuda/common_unit.hpp"
#include "kernels/cuda/launches.hpp"

namespace weightcast {

/// A move with its address in device memory. Rows that lie one behind the other are one row.
struct DeviceMove {
  std::byte* address;
  std::int64_t pitch;
  std::int64_t staging;
  std::int64_t staging_pitch;
  std::int64_t rows;
  std::int64_t row_bytes;
  MoveOp op;
  // With a layout: of its matrix, and the widest load that everything in it is a multiple of.
  MatrixLayout layout;
  std::int64_t row;
  std::int64_t byte;
  std::uint32_t unit;
};

namespace {

// Loads that a thread has under way at once.
constexpr int kInFlight = 4;
constexpr int kPlacedInFlight = 2;

enum class Direction : std::uint8_t { kPack, kUnpack };

/// Those that work on one chunk together: a block or a warp.
struct Team {
  std::uint32_t rank;
  std::uint32_t size;
};

/// Rows [0, rows) of `row_bytes` bytes from here to there.
struct Rows {
  const std::byte* from;
  std::byte* to;
  std::int64_t from_pitch;
  std::int64_t to_pitch;
  std::uint32_t rows;
  std::uint32_t row_bytes;
};

/// A thread's walk over the units of some rows, `size` units on at each step, without a division a step.
class Walk {
 public:
  __device__ Walk(Team team, std::uint32_t units_of_row)
      : row_(team.rank / units_of_row),
        col_(team.rank % units_of_row),
        row_step_(team.size / units_of_row),
        col_step_(team.size % units_of_row),
        units_of_row_(units_of_row) {}
  __device__ void next() {
    row_ += row_step_;
    col_ += col_step_;
    if (col_ >= units_of_row_) {
      col_ -= units_of_row_;
      ++row_;
    }
  }
  __device__ std::uint32_t row() const { return row_; }
  __device__ std::uint32_t col() const { return col_; }

 private:
  std::uint32_t row_;
  std::uint32_t col_;
  std::uint32_t row_step_;
  std::uint32_t col_step_;
  std::uint32_t units_of_row_;
};

/// Copies in units of one vector; everything is a multiple of its size. `Zero` writes zeros and reads
/// nothing.
template <typename Vector, bool Zero>
__device__ void copy_units(const Rows& rows, Team team) {
  const std::uint32_t units_of_row = rows.row_bytes / sizeof(Vector);
  Walk walk(team, units_of_row);
  while (walk.row() < rows.rows) {
    Vector value[kInFlight] = {};
    Vector* to[kInFlight];
    bool mine[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      mine[i] = walk.row() < rows.rows;
      to[i] = reinterpret_cast<Vector*>(rows.to + walk.row() * rows.to_pitch) + walk.col();
      if (!Zero && mine[i]) {
        value[i] =
            __ldcs(reinterpret_cast<const Vector*>(rows.from + walk.row() * rows.from_pitch) + walk.col());
      }
      walk.next();
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (mine[i]) __stcs(to[i], value[i]);
    }
  }
}

/// One row whose ends are not aligned, but both sides alike: single bytes up to the first aligned vector,
/// vectors, single bytes.
template <bool Zero>
__device__ void copy_row_with_ends(const Rows& row, Team team) {
  const auto to = reinterpret_cast<std::uintptr_t>(row.to);
  const auto head = static_cast<std::uint32_t>(min(static_cast<std::uintptr_t>(row.row_bytes), -to & 15));
  const std::uint32_t body = (row.row_bytes - head) / 16 * 16;
  const Rows middle{row.from + head, row.to + head, 0, 0, body == 0 ? 0u : 1u, body};
  if (body > 0) copy_units<uint4, Zero>(middle, team);
  for (std::uint32_t i = team.rank; i < row.row_bytes - body; i += team.size) {
    const std::uint32_t at = i < head ? i : i + body;
    row.to[at] = Zero ? std::byte{0} : row.from[at];
  }
}

template <bool Zero>
__device__ void copy_rows(const Rows& rows, Team team) {
  const auto from = Zero ? std::uintptr_t{0} : reinterpret_cast<std::uintptr_t>(rows.from);
  const auto to = reinterpret_cast<std::uintptr_t>(rows.to);
  std::uintptr_t all = from | to | rows.row_bytes;
  if (rows.rows > 1) all |= static_cast<std::uintptr_t>(Zero ? 0 : rows.from_pitch) | rows.to_pitch;
  if (all % 16 == 0) return copy_units<uint4, Zero>(rows, team);
  if (rows.rows == 1 && (Zero || (from ^ to) % 16 == 0)) return copy_row_with_ends<Zero>(rows, team);
  if (all % 8 == 0) return copy_units<uint2, Zero>(rows, team);
  if (all % 4 == 0) return copy_units<unsigned, Zero>(rows, team);
  if (all % 2 == 0) return copy_units<unsigned short, Zero>(rows, team);
  copy_units<unsigned char, Zero>(rows, team);
}

/// float32 rows to bfloat16 rows; `row_bytes` and `to_pitch` are those of the bfloat16 side.
__device__ void round_rows(const Rows& rows, Team team) {
  Walk walk(team, rows.row_bytes / 2);
  for (; walk.row() < rows.rows; walk.next()) {
    const std::byte* from = rows.from + walk.row() * rows.from_pitch + std::int64_t{4} * walk.col();
    std::byte* to = rows.to + walk.row() * rows.to_pitch + std::int64_t{2} * walk.col();
    if (reinterpret_cast<std::uintptr_t>(from) % 4 == 0 && reinterpret_cast<std::uintptr_t>(to) % 2 == 0) {
      *reinterpret_cast<std::uint16_t*>(to) = bf16_bits(*reinterpret_cast<const float*>(from));
    } else {
      float value;
      memcpy(&value, from, 4);
      const std::uint16_t bits = bf16_bits(value);
      memcpy(to, &bits, 2);
    }
  }
}

/// bfloat16 rows to float32 rows; `row_bytes` and `from_pitch` are those of the bfloat16 side.
__device__ void widen_rows(const Rows& rows, Team team) {
  Walk walk(team, rows.row_bytes / 2);
  for (; walk.row() < rows.rows; walk.next()) {
    const std::byte* from = rows.from + walk.row() * rows.from_pitch + std::int64_t{2} * walk.col();
    std::byte* to = rows.to + walk.row() * rows.to_pitch + std::int64_t{4} * walk.col();
    // Byte by byte: either address may be that of any byte.
    std::uint16_t bits;
    memcpy(&bits, from, 2);
    const std::uint32_t word = std::uint32_t{bits} << 16;
    memcpy(to, &word, 4);
  }
}

/// −e^x of rows of float32, or of bfloat16 as widen_rows(), in float32; `row_bytes` is that of what comes.
__device__ void negate_exp_rows(const Rows& rows, bool of_bf16, Team team) {
  const std::uint32_t element = of_bf16 ? 2 : 4;
  Walk walk(team, rows.row_bytes / element);
  for (; walk.row() < rows.rows; walk.next()) {
    const std::byte* from = rows.from + walk.row() * rows.from_pitch + std::int64_t{element} * walk.col();
    std::byte* to = rows.to + walk.row() * rows.to_pitch + std::int64_t{4} * walk.col();
    float value = 0;
    if (of_bf16) {
      std::uint16_t bits;
      memcpy(&bits, from, 2);
      value = bf16_value(bits);
    } else {
      memcpy(&value, from, 4);
    }
    const std::uint32_t word = negated_exp_bits(value);
    memcpy(to, &word, 4);
  }
}

/// 1 more than each element of rows of float32, or of bfloat16, in the same type.
__device__ void add_one_to_rows(const Rows& rows, bool of_bf16, Team team) {
  const std::uint32_t element = of_bf16 ? 2 : 4;
  Walk walk(team, rows.row_bytes / element);
  for (; walk.row() < rows.rows; walk.next()) {
    const std::byte* from = rows.from + walk.row() * rows.from_pitch + std::int64_t{element} * walk.col();
    std::byte* to = rows.to + walk.row() * rows.to_pitch + std::int64_t{element} * walk.col();
    if (of_bf16) {
      std::uint16_t bits;
      memcpy(&bits, from, 2);
      bits = one_more_bf16(bits);
      memcpy(to, &bits, 2);
    } else {
      float value;
      memcpy(&value, from, 4);
      const std::uint32_t word = one_more_bits(value);
      memcpy(to, &word, 4);
    }
  }
}

/// The same where a layout places one side, unit by unit of a vector.
template <Direction D, bool Zero, typename Vector>
__device__ void run_placed_units(const DeviceMove& move, std::byte* packed, std::int64_t row,
                                 std::int64_t byte, std::uint32_t count, std::uint32_t row_bytes, Team team) {
  Walk walk(team, row_bytes / sizeof(Vector));
  while (walk.row() < count) {
    Vector value[kPlacedInFlight] = {};
    Vector* to[kPlacedInFlight];
    bool mine[kPlacedInFlight];
#pragma unroll
    for (int i = 0; i < kPlacedInFlight; ++i) {
      mine[i] = walk.row() < count;
      const std::int64_t at = std::int64_t{walk.col()} * sizeof(Vector);
      auto* placed = reinterpret_cast<Vector*>(move.address + move.layout.row_offset(row + walk.row()) +
                                               move.layout.byte_offset(byte + at));
      auto* dense = reinterpret_cast<Vector*>(packed + walk.row() * move.staging_pitch + at);
      to[i] = D == Direction::kPack ? dense : placed;
      if (!Zero && mine[i]) value[i] = __ldcs(D == Direction::kPack ? placed : dense);
      walk.next();
    }
#pragma unroll
    for (int i = 0; i < kPlacedInFlight; ++i) {
      if (mine[i]) __stcs(to[i], value[i]);
    }
  }
}

/// Memory that a block's threads share, for one use at a time.
__device__ inline std::byte* shared_scratch() {
  constexpr int kBytes = 32 << 10;
  __shared__ __align__(16) std::byte bytes[kBytes];
  return bytes;
}

/// The same of a transposed matrix for a whole block: through shared memory, so that a warp's accesses to
/// either side are to neighbours.
template <typename Element>
__device__ void unpack_transposed(const DeviceMove& move, const std::byte* packed, std::int64_t row,
                                  std::int64_t byte, std::uint32_t count, std::uint32_t row_bytes) {
  constexpr std::uint32_t kSide = 64;
  // One more in a row than there are: columns then lie in banks of their own.
  auto* const square = reinterpret_cast<Element(*)[kSide + 1]>(shared_scratch());
  const std::uint32_t cols = row_bytes / sizeof(Element);
  std::byte* const placed = move.address + move.layout.row_offset(row) + move.layout.byte_offset(byte);
  for (std::uint32_t r = 0; r < count; r += kSide) {
    for (std::uint32_t c = 0; c < cols; c += kSide) {
      const std::uint32_t rows_here = min(kSide, count - r);
      const std::uint32_t cols_here = min(kSide, cols - c);
      for (std::uint32_t i = threadIdx.x; i < kSide * kSide; i += kThreads) {
        const std::uint32_t ri = i / kSide;
        const std::uint32_t ci = i % kSide;
        if (ri < rows_here && ci < cols_here) {
          square[ri][ci] =
              __ldcs(reinterpret_cast<const Element*>(packed + (r + ri) * move.staging_pitch) + c + ci);
        }
      }
      __syncthreads();
      for (std::uint32_t i = threadIdx.x; i < kSide * kSide; i += kThreads) {
        const std::uint32_t ci = i / kSide;
        const std::uint32_t ri = i % kSide;
        if (ri < rows_here && ci < cols_here) {
          __stcs(reinterpret_cast<Element*>(placed + (c + ci) * move.layout.unit_step) + r + ri,
                 square[ri][ci]);
        }
      }
      __syncthreads();
    }
  }
}

/// The same of elements of two bytes where rows can be read in units of eight: two rows become one word for
/// each column, so that neither memory is asked for less than a word.
__device__ void unpack_transposed_pairs(const DeviceMove& move, const std::byte* packed, std::int64_t row,
                                        std::int64_t byte, std::uint32_t count, std::uint32_t row_bytes) {
  constexpr std::uint32_t kPairs = 64;  // of rows
  constexpr std::uint32_t kUnits = 32;  // of four columns
  auto* const columns = reinterpret_cast<unsigned(*)[kPairs]>(shared_scratch());
  // Shuffled so that neither neighbouring units nor neighbouring pairs meet in a bank.
  const auto slot = [&](std::uint32_t col, std::uint32_t pair) -> unsigned& {
    return columns[col][pair ^ (col / 4 % kUnits)];
  };
  const std::uint32_t cols = row_bytes / 2;
  std::byte* const placed = move.address + move.layout.row_offset(row) + move.layout.byte_offset(byte);
  for (std::uint32_t r = 0; r < count; r += 2 * kPairs) {
    for (std::uint32_t c = 0; c < cols; c += 4 * kUnits) {
      constexpr std::uint32_t kItems = kPairs * kUnits / kThreads;
      uint2 upper[kItems] = {};
      uint2 lower[kItems] = {};
#pragma unroll
      for (std::uint32_t i = 0; i < kItems; ++i) {
        const std::uint32_t item = i * kThreads + threadIdx.x;
        const std::uint32_t first = r + 2 * (item / kUnits);
        const std::uint32_t col = c + 4 * (item % kUnits);
        const std::byte* const at = packed + first * move.staging_pitch + 2 * col;
        if (col < cols && first < count) upper[i] = __ldcs(reinterpret_cast<const uint2*>(at));
        if (col < cols && first + 1 < count) {
          lower[i] = __ldcs(reinterpret_cast<const uint2*>(at + move.staging_pitch));
        }
      }
#pragma unroll
      for (std::uint32_t i = 0; i < kItems; ++i) {
        const std::uint32_t item = i * kThreads + threadIdx.x;
        const std::uint32_t pair = item / kUnits;
        const std::uint32_t col = 4 * (item % kUnits);
        slot(col, pair) = __byte_perm(upper[i].x, lower[i].x, 0x5410);
        slot(col + 1, pair) = __byte_perm(upper[i].x, lower[i].x, 0x7632);
        slot(col + 2, pair) = __byte_perm(upper[i].y, lower[i].y, 0x5410);
        slot(col + 3, pair) = __byte_perm(upper[i].y, lower[i].y, 0x7632);
      }
      __syncthreads();
      for (std::uint32_t item = threadIdx.x; item < 4 * kUnits * kPairs; item += kThreads) {
        const std::uint32_t col = item / kPairs;
        const std::uint32_t first = r + 2 * (item % kPairs);
        if (c + col >= cols || first >= count) continue;
        std::byte* const to = placed + (c + col) * move.layout.unit_step + 2 * first;
        if (first + 1 < count) {
          __stcs(reinterpret_cast<unsigned*>(to), slot(col, item % kPairs));
        } else {
          __stcs(reinterpret_cast<unsigned short*>(to),
                 static_cast<unsigned short>(slot(col, item % kPairs)));
        }
      }
      __syncthreads();
    }
  }
}

/// Whether rows can be read in units of eight bytes, and pairs of them be written as words.
__device__ bool in_pairs(const DeviceMove& move, const std::byte* packed, std::int64_t row, std::int64_t byte,
                         std::uint32_t row_bytes) {
  const std::byte* const placed = move.address + move.layout.row_offset(row) + move.layout.byte_offset(byte);
  const auto read =
      reinterpret_cast<std::uintptr_t>(packed) | static_cast<std::uintptr_t>(move.staging_pitch) | row_bytes;
  const auto written =
      reinterpret_cast<std::uintptr_t>(placed) | static_cast<std::uintptr_t>(move.layout.unit_step);
  return read % 8 == 0 && written % 4 == 0;
}

template <Direction D, bool Zero>
__device__ void run_placed(const DeviceMove& move, std::byte* staging, std::int64_t row, std::int64_t begin,
                           std::uint32_t count, std::uint32_t row_bytes, Team team) {
  std::byte* packed = staging + move.staging + row * move.staging_pitch + begin;
  const std::int64_t first = move.row + row;
  const std::int64_t byte = move.byte + begin;
  if (D == Direction::kUnpack && !Zero && team.size == kThreads && move.layout.transposed() &&
      move.unit == move.layout.unit_bytes()) {
    if (move.unit == 2 && in_pairs(move, packed, first, byte, row_bytes)) {
      return unpack_transposed_pairs(move, packed, first, byte, count, row_bytes);
    }
    if (move.unit == 2) return unpack_transposed<unsigned short>(move, packed, first, byte, count, row_bytes);
    if (move.unit == 4) return unpack_transposed<unsigned>(move, packed, first, byte, count, row_bytes);
  }
  switch (move.unit) {
    case 16:
      return run_placed_units<D, Zero, uint4>(move, packed, first, byte, count, row_bytes, team);
    case 8:
      return run_placed_units<D, Zero, uint2>(move, packed, first, byte, count, row_bytes, team);
    case 4:
      return run_placed_units<D, Zero, unsigned>(move, packed, first, byte, count, row_bytes, team);
    case 2:
      return run_placed_units<D, Zero, unsigned short>(move, packed, first, byte, count, row_bytes, team);
    default:
      return run_placed_units<D, Zero, unsigned char>(move, packed, first, byte, count, row_bytes, team);
  }
}

/// Rows [row, row + count) of a move, of each the bytes [begin, begin + row_bytes) of its staging side.
template <Direction D>
__device__ void run_rows(const DeviceMove& move, std::byte* staging, std::int64_t row, std::int64_t begin,
                         std::uint32_t count, std::uint32_t row_bytes, Team team) {
  if (!move.layout.plain()) {
    return D == Direction::kUnpack && move.op == MoveOp::kZero
               ? run_placed<D, true>(move, staging, row, begin, count, row_bytes, team)
               : run_placed<D, false>(move, staging, row, begin, count, row_bytes, team);
  }
  std::byte* packed = staging + move.staging + row * move.staging_pitch + begin;
  std::byte* placed = move.address + row * move.pitch;
  const bool of_bf16 = move.op == MoveOp::kNegatedExpOfBF16;
  const bool negates_exp = of_bf16 || move.op == MoveOp::kNegatedExp;
  const bool widens = of_bf16 || move.op == MoveOp::kBF16ToF32;
  if (adds_one(move.op)) {
    placed += begin;
    const bool packs = D == Direction::kPack;
    add_one_to_rows(
        {packs ? placed : packed, packs ? packed : placed, packs ? move.pitch : move.staging_pitch,
         packs ? move.staging_pitch : move.pitch, count, row_bytes},
        move.op == MoveOp::kOneMoreBF16, team);
  } else if (D == Direction::kPack && widens) {
    widen_rows({placed + begin / 2, packed, move.pitch, move.staging_pitch, count, row_bytes / 2}, team);
  } else if (D == Direction::kPack) {
    const bool rounds = move.op == MoveOp::kF32ToBF16;
    placed += rounds ? 2 * begin : begin;
    const Rows rows{placed, packed, move.pitch, move.staging_pitch, count, row_bytes};
    rounds ? round_rows(rows, team) : copy_rows<false>(rows, team);
  } else {
    placed += widens ? 2 * begin : begin;
    const Rows rows{packed, placed, move.staging_pitch, move.pitch, count, row_bytes};
    if (negates_exp) return negate_exp_rows(rows, of_bf16, team);
    if (widens) return widen_rows(rows, team);
    move.op == MoveOp::kZero ? copy_rows<true>(rows, team) : copy_rows<false>(rows, team);
  }
}

/// Calls `each(move number, move, first row, first byte of it, rows, bytes of each)` for what this thread's
/// team has to do of all tiles.
template <typename Each>
__device__ void for_each_chunk(const DeviceMove* moves, const Tile* tiles, std::uint32_t count, Each each) {
  for (std::uint32_t t = blockIdx.x; t < count; t += gridDim.x) {
    const Tile tile = tiles[t];
    if ((tile.what & Tile::kRun) != 0) {
      const std::uint32_t run = tile.what & ~Tile::kRun;
      for (std::uint32_t i = threadIdx.x / kWarp; i < run; i += kThreads / kWarp) {
        const DeviceMove& move = moves[tile.move + i];
        each(tile.move + i, move, 0, 0, static_cast<std::uint32_t>(move.rows),
             static_cast<std::uint32_t>(move.row_bytes), Team{threadIdx.x % kWarp, kWarp});
      }
      continue;
    }
    const DeviceMove& move = moves[tile.move];
    const Chunking chunking(move.rows, move.row_bytes, move.layout.transposed());
    const auto parts = static_cast<std::uint32_t>(chunking.parts_of_row);
    const std::int64_t row = tile.what / parts * chunking.rows_each;
    const std::int64_t begin = tile.what % parts * chunking.part_bytes;
    each(tile.move, move, row, begin, static_cast<std::uint32_t>(min(chunking.rows_each, move.rows - row)),
         static_cast<std::uint32_t>(min(chunking.part_bytes, move.row_bytes - begin)),
         Team{threadIdx.x, kThreads});
  }
}

template <Direction D>
__global__ void __launch_bounds__(kThreads, 2)
    run_moves(const DeviceMove* moves, const Tile* tiles, std::uint32_t count, std::byte* staging) {
  for_each_chunk(moves, tiles, count,
                 [&](std::uint32_t, const DeviceMove& move, std::int64_t row, std::int64_t begin,
                     std::uint32_t rows, std::uint32_t row_bytes,
                     Team team) { run_rows<D>(move, staging, row, begin, rows, row_bytes, team); });
}

__global__ void __launch_bounds__(kThreads)
    look_for_not_zero(const DeviceMove* moves, const Tile* tiles, std::uint32_t count, unsigned* result) {
  for_each_chunk(moves, tiles, count,
                 [&](std::uint32_t number, const DeviceMove& move, std::int64_t row, std::int64_t begin,
                     std::uint32_t rows, std::uint32_t row_bytes, Team team) {
                   bool dirty = false;
                   for (Walk walk(team, row_bytes); walk.row() < rows; walk.next()) {
                     const std::byte* at = move.address;
                     if (move.layout.plain()) {
                       at += (row + walk.row()) * move.pitch + begin + walk.col();
                     } else {
                       at += move.layout.row_offset(move.row + row + walk.row()) +
                             move.layout.byte_offset(move.byte + begin + walk.col());
                     }
                     dirty = dirty || *at != std::byte{0};
                   }
                   if (dirty) atomicMin(result, number);
                 });
}

}  // namespace

CudaMovePrograms::CudaMovePrograms(std::span<const Move> moves, std::span<const ProgramRange> programs,
                                   std::span<std::byte* const> buffers) {
  std::vector<DeviceMove> resolved;
  resolved.reserve(moves.size());
  for (const Move& move : moves) {
    const bool one = move.dense();
    std::byte* const address = buffers[move.buffer] + move.offset;
    // Staging begins at a multiple of 16 bytes.
    const std::uint32_t unit = common_unit(
        address, {move.staging, move.staging_step(), move.row_bytes, move.byte, all_steps(move.layout)});
    resolved.push_back({address, move.pitch, move.staging, move.staging_step(), one ? 1 : move.rows,
                        one ? move.bytes() : move.row_bytes, move.op, move.layout, move.row, move.byte,
                        unit});
  }
  moves_ = DeviceArray<DeviceMove>(std::span<const DeviceMove>(resolved));
  const std::vector<Tile> tiles = tile_all<Tile>(moves, programs, launches_);
  tiles_ = DeviceArray<Tile>(std::span<const Tile>(tiles));
}

void CudaMovePrograms::pack(std::size_t program, std::byte* staging, int blocks, cudaStream_t stream) const {
  const ProgramRange& launch = launches_[program];
  if (launch.count == 0) return;
  run_moves<Direction::kPack><<<grid(launch.count, blocks), kThreads, 0, stream>>>(
      moves_.data(), tiles_.data() + launch.first, launch.count, staging);
  WEIGHTCAST_CUDA(cudaGetLastError());
}

void CudaMovePrograms::unpack(std::size_t program, const std::byte* staging, int blocks,
                              cudaStream_t stream) const {
  const ProgramRange& launch = launches_[program];
  if (launch.count == 0) return;
  // An unpack kernel only reads staging.
  run_moves<Direction::kUnpack><<<grid(launch.count, blocks), kThreads, 0, stream>>>(
      moves_.data(), tiles_.data() + launch.first, launch.count, const_cast<std::byte*>(staging));
  WEIGHTCAST_CUDA(cudaGetLastError());
}

void CudaMovePrograms::find_not_zero(std::size_t program, unsigned* result, int blocks,
                                     cudaStream_t stream) const {
  const ProgramRange& launch = launches_[program];
  if (launch.count == 0) return;
  look_for_not_zero<<<grid(launch.count, blocks), kThreads, 0, stream>>>(
      moves_.data(), tiles_.data() + launch.first, launch.count, result);
  WEIGHTCAST_CUDA(cudaGetLastError());
}

}  // namespace weightcast
