#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/quantizer.hpp"
#include "kernels/cuda/dot.hpp"
#include "kernels/cuda/quant_encode.cuh"
#include "kernels/cuda/quant_kernels.hpp"
#include "kernels/digest.hpp"
#include "kernels/quant_move.hpp"

// How it works. A thread block is two teams of eight warps, each with tiles of its own. Every lane of a warp
// loads 128 bytes of values at once, which are all that it holds: eight times 16, from every second row, and
// always of the same columns, so that whatever belongs to a column is computed once. Half a warp is as wide
// as a tile. So 64 KiB of a block's loads are under way at once, and from these registers come the largest
// magnitudes, the codes and the digests. What belongs to a row (its place, its key) one lane computes and the
// others get by a shuffle.

namespace weightcast {

namespace quant {

constexpr int kWarp = 32;
constexpr int kHalf = 16;  ///< lanes side by side in a row
constexpr int kThreads = QuantKernels::kThreads;
constexpr int kTeams = QuantKernels::kTeams;
constexpr int kTeam = kThreads / kTeams;
constexpr int kWarps = kTeam / kWarp;  ///< of a team
constexpr int kVectors = 8;            ///< that a lane loads

/// What of a tile belongs to whom.
template <QuantScheme S>
struct Geometry {
  static constexpr int kPerByte = codes_per_byte(S);
  static constexpr int kUnit = 8 * kPerByte;  ///< values of a lane side by side: eight bytes of codes
  static constexpr int kUnitVectors = kUnit / 8;
  static constexpr int kSteps = kVectors / kUnitVectors;  ///< from two rows to the next two
  static constexpr int kWarpRows = 2 * kSteps;
  static constexpr int kStripCols = kHalf * kUnit;
  /// A scale is over what the whole team has.
  static constexpr bool kSquare = block_rows(S) > 1;
  /// A scale is over a whole row.
  static constexpr bool kWholeRows = block_rows(S) == 1 && block_cols(S) == 0;
  /// A scale is over some lanes side by side.
  static constexpr bool kRowBlocks = block_rows(S) == 1 && block_cols(S) > 0;
  static constexpr int kBlockLanes = kRowBlocks ? static_cast<int>(block_cols(S)) / kUnit : 1;
  static constexpr int kTileRows = kWholeRows ? kWarpRows : kWarps * kWarpRows;
  static constexpr int kTileCols = kWholeRows ? 0 : kStripCols;

  static_assert(!kSquare || (block_rows(S) == kTileRows && block_cols(S) == kTileCols));
  static_assert(kWarpRows <= kHalf);
};

/// Waits for all threads of the team; what they wrote to shared memory is seen by all of them.
__device__ inline void wait_for_team(std::uint32_t team) {
  // Barrier 0 is that of the block. Numbers that are not constants would take all 16 of them.
  static_assert(kTeams == 2);
  if (team == 0) {
    asm volatile("bar.sync 1, %0;" ::"n"(kTeam) : "memory");
  } else {
    asm volatile("bar.sync 2, %0;" ::"n"(kTeam) : "memory");
  }
}

__device__ inline const std::byte* base(const QuantWork& work, std::int64_t address, bool staged) {
  return staged ? work.staging + address : reinterpret_cast<const std::byte*>(address);
}

__device__ inline std::byte* base(const QuantWork& work, const DevicePlace& place) {
  return place.staged ? work.staging + place.address : reinterpret_cast<std::byte*>(place.address);
}

/// The eight vectors of values of a lane. What is not in the move is zero.
template <QuantScheme S>
struct Values {
  using G = Geometry<S>;
  uint4 of[G::kSteps][G::kUnitVectors];

  /// `at`: the lane's first value; `rows`: to the move's end, from the lane's first one on; `cols`: likewise,
  /// at most a unit; `in_one`: all are there, and may be read 16 bytes at once.
  __device__ void load(const std::byte* at, std::int64_t pitch, int rows, int cols, bool in_one) {
    if (in_one) {
#pragma unroll
      for (int step = 0; step < G::kSteps; ++step) {
#pragma unroll
        for (int i = 0; i < G::kUnitVectors; ++i) {
          of[step][i] = uint4{0, 0, 0, 0};
          if (2 * step < rows) of[step][i] = __ldcs(reinterpret_cast<const uint4*>(at) + i);
        }
        at += 2 * pitch;
      }
      return;
    }
    // Through memory, so that what is rare takes no registers from the rest.
    Values parts;
    parts.load_in_parts(at, pitch, rows, cols);
    *this = parts;
  }

  /// The same at any address, where there is less than a unit, too.
  __device__ __noinline__ void load_in_parts(const std::byte* at, std::int64_t pitch, int rows, int cols) {
#pragma unroll 1
    for (int step = 0; step < G::kSteps; ++step) {
      const auto* values = reinterpret_cast<const unsigned short*>(at);
      const int here = 2 * step < rows ? cols : 0;
      const auto value = [&](int i) { return i < here ? std::uint32_t{__ldcs(values + i)} : 0u; };
      const auto pair = [&](int i) { return value(i) | value(i + 1) << 16; };
#pragma unroll
      for (int i = 0; i < G::kUnitVectors; ++i) {
        of[step][i] = uint4{pair(8 * i), pair(8 * i + 2), pair(8 * i + 4), pair(8 * i + 6)};
      }
      at += 2 * pitch;
    }
  }

  /// bfloat16 bits.
  __device__ std::uint32_t largest() const {
    std::uint32_t pair = 0;
#pragma unroll
    for (int step = 0; step < G::kSteps; ++step) pair = larger_pair(pair, of[step]);
    return larger_of(pair);
  }
};

/// Where a warp works: its lanes' places in `kWarpRows` rows of one strip of columns.
template <QuantScheme S>
struct Spot {
  using G = Geometry<S>;
  int row;  ///< the warp's first
  int col;  ///< the lane's first
  int lane;
  int half;  ///< the lane's rows are the even ones or the odd ones
  int rows;  ///< of the warp
  int cols;  ///< of the lane
  // Not to be asked of `cols`: ptxas 13.0 takes a minimum's comparison with its own bound from the
  // instruction that makes it, and gets it wrong where that is also cut off at zero.
  bool whole;  ///< the lane has a whole unit
  bool any;    ///< or a part of one

  __device__ Spot(const DeviceQuantMove& move, int first_row, int first_col)
      : row(first_row),
        lane(static_cast<int>(threadIdx.x) % kWarp),
        half(lane / kHalf),
        rows(max(0, min(G::kWarpRows, move.rows - row))) {
    col = first_col + lane % kHalf * G::kUnit;
    const int left = move.cols - col;
    whole = left >= G::kUnit;
    any = left > 0;
    cols = max(0, min(G::kUnit, left));
  }

  __device__ void load(const DeviceQuantMove& move, const std::byte* values, Values<S>& into) const {
    into.load(values + (row + half) * move.pitch + 2 * std::int64_t{col}, move.pitch, rows - half, cols,
              move.aligned && whole);
  }
};

/// The lowest byte of `value`. With neighbours to come: it stays in the cache until they are there.
__device__ inline void store_byte(std::byte* to, std::uint32_t value) {
  __stwb(reinterpret_cast<unsigned char*>(to), static_cast<unsigned char>(value));
}

/// Eight bytes of codes, or as many as there are, from byte `first` of the place's rows on; `row` is where
/// byte 0 of the row would be.
__device__ inline void store_codes_in_parts(std::byte* row, const DevicePlace& place, std::int64_t first,
                                            uint2 codes, int bytes, bool whole) {
  if (whole && place.unit == 4) {
    __stcs(reinterpret_cast<unsigned*>(row + place.layout.byte_offset(first)), codes.x);
    __stcs(reinterpret_cast<unsigned*>(row + place.layout.byte_offset(first + 4)), codes.y);
    return;
  }
  const std::uint64_t all = std::uint64_t{codes.y} << 32 | codes.x;
#pragma unroll 1
  for (int i = 0; i < bytes; ++i) {
    store_byte(row + place.layout.byte_offset(first + i), static_cast<std::uint32_t>(all >> (8 * i)));
  }
}

/// An element of the scales that begins at byte `first` of a row.
__device__ inline void store_scale(std::byte* row, const DevicePlace& place, std::int64_t first,
                                   std::uint32_t stored, int bytes) {
  if (bytes == 4 && place.unit >= 4) {
    __stwb(reinterpret_cast<unsigned*>(row + place.layout.byte_offset(first)), stored);
    return;
  }
#pragma unroll 1
  for (int i = 0; i < bytes; ++i) {
    store_byte(row + place.layout.byte_offset(first + i), stored >> (8 * i));
  }
}

/// A thread's share of a move's digests.
struct Sums {
  std::uint64_t codes = 0;
  std::uint64_t scales = 0;
};

/// Adds what the lanes of a warp have to the sum in memory.
__device__ inline void add_up(std::uint64_t sum, std::uint64_t* total) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_down_sync(~0u, sum, step);
  if (threadIdx.x % kWarp == 0) {
    atomicAdd(reinterpret_cast<unsigned long long*>(total), static_cast<unsigned long long>(sum));
  }
}

__device__ inline std::uint64_t scales_row_key(const DeviceQuantMove& move, std::int64_t row) {
  return digest_row_key(move.scales_key, move.scales_row + row);
}

__device__ inline std::uint64_t scales_column_key(const DeviceQuantMove& move, std::int64_t col) {
  return digest_column_key(move.scales_key, move.scales_col + col, move.scale_bytes);
}

/// Stores one element of the scales and returns what it adds to the digest.
template <bool Digests>
__device__ std::uint64_t put_scale(const DeviceQuantMove& move, const QuantWork& work, int row,
                                   std::int64_t col, std::uint32_t stored) {
  if (move.scales.unit != 0) {
    store_scale(base(work, move.scales) + move.scales.layout.row_offset(move.scales.row + row), move.scales,
                move.scales.byte + col * move.scale_bytes, stored, move.scale_bytes);
  }
  return Digests ? scales_row_key(move, row) * scales_column_key(move, col) * stored : 0;
}

/// Encodes, stores and sums up what the lanes of a warp hold. `scale_of(step)` is the scale of a lane's row,
/// where that does not follow from the lane's row itself.
template <Quantizer Q, bool Digests, typename ScaleOf>
__device__ void finish(const DeviceQuantMove& move, const QuantWork& work, const Spot<Q.scheme>& spot,
                       const Values<Q.scheme>& values, GlobalScale global, Sums& sums, ScaleOf scale_of) {
  using G = Geometry<Q.scheme>;
  const int lane = spot.lane;
  const int bytes = (spot.cols + G::kPerByte - 1) / G::kPerByte;
  const int code_col = spot.col / G::kPerByte;
  const std::int64_t code_byte = move.codes.byte + code_col;
  const std::int64_t code_offset = move.codes.layout.byte_offset(code_byte);
  const bool writes_codes = move.codes.unit != 0 && spot.any;
  const bool in_one = spot.whole && move.codes.unit >= 8;
  const bool has_scale = G::kRowBlocks && lane % G::kBlockLanes == 0 && spot.any;
  const bool writes_scale = has_scale && move.scales.unit != 0;
  const int scale_col = spot.col / (G::kBlockLanes * G::kUnit);
  const std::int64_t scale_offset = move.scales.layout.byte_offset(move.scales.byte + scale_col);
  // Lane i has the address and the key of row i of the codes, lane 16 + i of the scales.
  const int own = lane % kHalf;
  const bool of_codes = lane < kHalf;
  const DevicePlace& place = G::kRowBlocks && !of_codes ? move.scales : move.codes;
  const auto own_address = reinterpret_cast<std::uint64_t>(base(work, place)) +
                           static_cast<std::uint64_t>(place.layout.row_offset(place.row + spot.row + own));
  const auto row_at = [&](int from) {
    return reinterpret_cast<std::byte*>(__shfl_sync(~0u, own_address, from));
  };
  std::uint64_t own_key = 0;
  std::uint64_t scale_key = 0;
  // The words that a lane's codes lie in, which may begin inside of one; those of no code are zero, whatever
  // their bytes.
  Dot<std::uint32_t, 3> dot;
  const int first_bit = 8 * static_cast<int>((move.codes_col + code_col) % 4);
  const auto first_bytes = [](int count) {
    return static_cast<std::uint32_t>((std::uint64_t{1} << 8 * count) - 1);
  };
  const uint2 there{first_bytes(min(bytes, 4)), first_bytes(max(bytes - 4, 0))};
  if constexpr (Digests) {
    const bool no_scale = !of_codes && !G::kRowBlocks;
    if (own < spot.rows && !no_scale) {
      own_key = digest_row_key(of_codes ? move.codes_key : move.scales_key,
                               (of_codes ? move.codes_row : move.scales_row) + spot.row + own);
    }
    if (has_scale) scale_key = scales_column_key(move, scale_col);
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      dot.set_key(i, digest_key(~move.codes_key, kDigestColumnFactor, (move.codes_col + code_col) / 4 + i));
    }
  }
#pragma unroll
  for (int step = 0; step < G::kSteps; ++step) {
    const int row = 2 * step + spot.half;
    BlockScale scale{};
    if constexpr (G::kRowBlocks) {
      std::uint32_t largest = larger_of(larger_pair(0, values.of[step]));
#pragma unroll
      for (int other = 1; other < G::kBlockLanes; other *= 2) {
        largest = max(largest, __shfl_xor_sync(~0u, largest, other));
      }
      scale = block_scale(Q, bf16_value(static_cast<std::uint16_t>(largest)), global);
      std::byte* const scales = row_at(kHalf + row);
      if (writes_scale && row < spot.rows) store_byte(scales + scale_offset, scale.stored);
      if constexpr (Digests) sums.scales += scale_key * scale.stored * __shfl_sync(~0u, own_key, kHalf + row);
    } else {
      scale.factor = scale_of(row);
    }
    const uint2 made = encode_unit<Q>(values.of[step], scale.factor);
    std::byte* const codes = row_at(row);
    if (writes_codes && row < spot.rows) {
      if (in_one) {
        __stcs(reinterpret_cast<uint2*>(codes + code_offset), made);
      } else {
        store_codes_in_parts(codes, move.codes, code_byte, made, bytes, spot.whole);
      }
    }
    if constexpr (Digests) {
      const uint2 codes_here{made.x & there.x, made.y & there.y};
      const std::uint32_t words[3] = {codes_here.x << first_bit,
                                      __funnelshift_l(codes_here.x, codes_here.y, first_bit),
                                      first_bit == 0 ? 0u : codes_here.y >> (32 - first_bit)};
      sums.codes += dot.of(words) * __shfl_sync(~0u, own_key, row);
    }
  }
}

/// The largest magnitude among `cols` values from `at` on, as bfloat16 bits; half a warp works together.
__device__ inline std::uint32_t largest_of_row(const std::byte* at, std::int64_t cols) {
  const int lane = static_cast<int>(threadIdx.x) % kHalf;
  const std::int64_t vectors = reinterpret_cast<std::uintptr_t>(at) % sizeof(uint4) == 0 ? cols / 8 : 0;
  std::uint32_t pair = 0;
  for (std::int64_t first = lane; first < vectors; first += kHalf * kVectors) {
    uint4 batch[kVectors];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      batch[i] = uint4{0, 0, 0, 0};
      // Not as what is read once: it is read again to be encoded.
      if (first + i * kHalf < vectors)
        batch[i] = __ldca(reinterpret_cast<const uint4*>(at) + first + i * kHalf);
    }
    pair = larger_pair(pair, batch);
  }
  for (std::int64_t i = 8 * vectors + lane; i < cols; i += kHalf) {
    pair = larger_pair(pair, std::uint32_t{__ldca(reinterpret_cast<const unsigned short*>(at) + i)});
  }
  std::uint32_t largest = larger_of(pair);
#pragma unroll
  for (int other = kHalf / 2; other > 0; other /= 2) {
    largest = max(largest, __shfl_xor_sync(~0u, largest, other));
  }
  return largest;
}

/// Tiles of a team, one after the other: the next one is read while this one is worked on. `work_on(tile,
/// move, row, chunk of columns, turn)`; the turn is 0 and 1 in turn.
template <typename WorkOn>
__device__ void for_each_tile(const QuantWork& work, int tile_rows, WorkOn work_on) {
  const std::uint32_t step = gridDim.x * kTeams;
  std::uint32_t t = blockIdx.x * kTeams + threadIdx.x / kTeam;
  if (t >= work.count) return;
  QuantTile next = work.tiles[t];
  for (std::uint32_t turn = 0; t < work.count; t += step, turn ^= 1u) {
    const QuantTile tile = next;
    if (t + step < work.count) next = work.tiles[t + step];
    const DeviceQuantMove& move = work.moves[tile.move];
    const std::uint32_t rows = tile.chunk / move.tiles_of_row;
    work_on(tile, move, static_cast<int>(rows) * tile_rows,
            static_cast<int>(tile.chunk - rows * move.tiles_of_row), turn);
  }
}

/// A tile where a scale is over all of it, over some lanes, or over the tensor.
template <Quantizer Q, bool Digests>
__device__ Sums quantize_tile(const DeviceQuantMove& move, const QuantWork& work, int row, int col,
                              GlobalScale global, std::uint32_t* of_warps) {
  using G = Geometry<Q.scheme>;
  const std::uint32_t team = threadIdx.x / kTeam;
  const int warp = static_cast<int>(threadIdx.x % kTeam) / kWarp;
  const Spot<Q.scheme> spot(move, row + warp * G::kWarpRows, col);
  Values<Q.scheme> values;
  spot.load(move, base(work, move.values, move.staged), values);
  Sums sums;
  BlockScale scale{0, global.factor};
  if constexpr (G::kSquare) {
    const std::uint32_t largest = __reduce_max_sync(~0u, values.largest());
    if (spot.lane == 0) of_warps[warp] = largest;
    wait_for_team(team);
    const std::uint32_t of_all = __reduce_max_sync(~0u, of_warps[spot.lane % kWarps]);
    scale = block_scale(Q, bf16_value(static_cast<std::uint16_t>(of_all)), global);
    // A lane for each row; where one element stands for all rows, the first.
    const int own_row = spot.row + spot.lane;
    const int scale_row = own_row >> move.scale_row_bits;
    if (spot.lane < spot.rows && scale_row << move.scale_row_bits == own_row) {
      // An fp32 power of two may be kept as its exponent.
      const std::uint32_t stored = move.scale_bytes == 1 ? scale.stored >> 23 : scale.stored;
      sums.scales = put_scale<Digests>(move, work, scale_row, col / G::kTileCols, stored);
    }
  }
  finish<Q, Digests>(move, work, spot, values, global, sums, [&](int) { return scale.factor; });
  return sums;
}

/// A tile where a scale is over a whole row: the values are read twice.
template <Quantizer Q, bool Digests>
__device__ Sums quantize_rows(const DeviceQuantMove& move, const QuantWork& work, int row, GlobalScale global,
                              float* factors) {
  using G = Geometry<Q.scheme>;
  const std::uint32_t team = threadIdx.x / kTeam;
  const int warp = static_cast<int>(threadIdx.x % kTeam) / kWarp;
  const int half_warp = static_cast<int>(threadIdx.x % kTeam) / kHalf;
  const std::byte* const values = base(work, move.values, move.staged);
  Sums sums;
  {
    // Of what is before and behind the box, too.
    const int own_row = row + half_warp;
    const std::int64_t cols = own_row < move.rows ? move.cols_before + move.cols + move.cols_behind : 0;
    const std::uint32_t largest = largest_of_row(values + own_row * move.pitch - 2 * move.cols_before, cols);
    if (threadIdx.x % kHalf == 0) {
      const BlockScale scale = block_scale(Q, bf16_value(static_cast<std::uint16_t>(largest)), global);
      factors[half_warp] = scale.factor;
      if (own_row < move.rows) sums.scales = put_scale<Digests>(move, work, own_row, 0, scale.stored);
    }
  }
  wait_for_team(team);
  const int strips = (move.cols + G::kStripCols - 1) / G::kStripCols;
  for (int strip = warp; strip < strips; strip += kWarps) {
    const Spot<Q.scheme> spot(move, row, strip * G::kStripCols);
    Values<Q.scheme> own;
    spot.load(move, values, own);
    finish<Q, Digests>(move, work, spot, own, global, sums, [&](int of) { return factors[of]; });
  }
  return sums;
}

/// Without digests two blocks find room on a multiprocessor.
template <QuantScheme S, QuantRule R, bool Digests>
__global__ void __launch_bounds__(kThreads, Digests ? 1 : 2) run_quantizer(QuantWork work) {
  // Not itself the parameter: the compiler's stubs for the host do not take one of a class.
  constexpr Quantizer kQuantizer{S, R};
  using G = Geometry<S>;
  // Two in turn, so that one barrier a tile is enough: who writes again has seen the barrier of the tile
  // between, before which all have read.
  __shared__ std::uint32_t of_warps[kTeams][2][kWarps];
  __shared__ float factors[kTeams][2][G::kWarpRows];
  const std::uint32_t team = threadIdx.x / kTeam;
  for_each_tile(work, G::kTileRows,
                [&](QuantTile tile, const DeviceQuantMove& move, int row, int chunk, std::uint32_t turn) {
                  GlobalScale global;
                  if (has_global(S) && move.scope != QuantMove::kNoScope) global = work.scales[move.scope];
                  Sums sums;
                  if constexpr (G::kWholeRows) {
                    sums = quantize_rows<kQuantizer, Digests>(move, work, row, global, factors[team][turn]);
                  } else {
                    sums = quantize_tile<kQuantizer, Digests>(move, work, row, chunk * G::kTileCols, global,
                                                              of_warps[team][turn]);
                  }
                  if constexpr (Digests) {
                    add_up(sums.codes, work.digests + 2 * std::size_t{tile.move});
                    if (block_scale_bytes(S) > 0) {
                      add_up(sums.scales, work.digests + 2 * std::size_t{tile.move} + 1);
                    }
                  }
                });
}

template <QuantScheme S>
__global__ void __launch_bounds__(kThreads, 2) find_largest(QuantWork work) {
  using G = Geometry<S>;
  const int warp = static_cast<int>(threadIdx.x % kTeam) / kWarp;
  for_each_tile(
      work, G::kTileRows, [&](QuantTile, const DeviceQuantMove& move, int row, int chunk, std::uint32_t) {
        if (move.scope == QuantMove::kNoScope) return;
        const std::byte* const values = base(work, move.values, move.staged);
        std::uint32_t largest = 0;
        if constexpr (G::kWholeRows) {
          const int own_row = row + static_cast<int>(threadIdx.x % kTeam) / kHalf;
          largest = largest_of_row(values + own_row * move.pitch, own_row < move.rows ? move.cols : 0);
        } else {
          const Spot<S> spot(move, row + warp * G::kWarpRows, chunk * G::kTileCols);
          Values<S> own;
          spot.load(move, values, own);
          largest = own.largest();
        }
        const std::uint32_t bits = __reduce_max_sync(~0u, largest) << 16;
        // Floats that are not negative are in the order of their bits. Most warps find it high enough: it
        // never falls, so that an old value does no harm.
        auto* const found = reinterpret_cast<unsigned*>(work.largest + move.scope);
        if (threadIdx.x % kWarp == 0 && bits > *static_cast<volatile unsigned*>(found))
          atomicMax(found, bits);
      });
}

}  // namespace quant

template <QuantScheme S, QuantRule R>
QuantKernels quant_kernels() {
  using G = quant::Geometry<S>;
  return {{S, R},
          G::kTileRows,
          G::kTileCols,
          &quant::run_quantizer<S, R, false>,
          &quant::run_quantizer<S, R, true>,
          &quant::find_largest<S>};
}

}  // namespace weightcast
