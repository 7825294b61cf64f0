#include "kernels/cuda/cuda_quantizer.hpp"

#include <algorithm>
#include <bit>
#include <cstdint>

#include "core/error.hpp"
#include "core/units.hpp"
#include "kernels/cuda/common_unit.hpp"
#include "kernels/cuda/quant_kernels.hpp"

namespace weightcast {

namespace {

const QuantKernels* kernels_for(Quantizer quantizer) {
  for (const auto kernels_of : {&fp8_block_kernels, &fp8_kernels, &fp4_kernels}) {
    if (const QuantKernels* kernels = kernels_of(quantizer)) return kernels;
  }
  throw InternalError("a quantiser that the device does not know");
}

/// What the kernels take for granted.
void require(const QuantMove& move, Quantizer quantizer) {
  if (move.quantizer != quantizer) throw InternalError("quantiser moves of two quantisers in one program");
  // A tile may end beyond the last row or column, whose numbers are ints.
  if (std::max(move.rows, move.cols) > (1 << 30)) throw InternalError("a quantiser move that is too large");
  const QuantScheme scheme = quantizer.scheme;
  const Box& codes = move.codes_box;
  if (codes.rows != move.rows || codes.cols != ceil_div(move.cols, codes_per_byte(scheme))) {
    throw InternalError("a quantiser move whose codes are not those of its values");
  }
  const std::int64_t scale_bytes = block_scale_bytes(scheme);
  if (scale_bytes == 0) return;
  const bool exponents = scheme == QuantScheme::kFp8Block && move.scale_bytes == 1;
  const Box& scales = move.scales_box;
  const std::int64_t cols = block_cols(scheme) == 0 ? 1 : ceil_div(move.cols, block_cols(scheme));
  if ((move.scale_bytes != scale_bytes && !exponents) || move.scale_rows <= 0 ||
      block_rows(scheme) % move.scale_rows != 0 || scales.rows != ceil_div(move.rows, move.scale_rows) ||
      scales.cols != cols) {
    throw InternalError("a quantiser move whose scales are not those of its values");
  }
}

/// An address, or an offset in staging.
std::int64_t address_of(const MatrixPlace& place, std::span<std::byte* const> sources,
                        std::span<std::byte* const> parameters) {
  switch (place.space) {
    case Space::kSource:
      return static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(sources[place.buffer])) + place.offset;
    case Space::kParameter:
      return static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(parameters[place.buffer])) +
             place.offset;
    case Space::kStaging:
    case Space::kNowhere:
      break;
  }
  return place.offset;
}

DevicePlace resolve(const MatrixPlace& place, std::span<std::byte* const> sources,
                    std::span<std::byte* const> parameters) {
  DevicePlace resolved;
  if (place.space == Space::kNowhere) return resolved;
  resolved.address = address_of(place, sources, parameters);
  resolved.staged = place.space == Space::kStaging;
  if (place.layout.plain()) {
    resolved.layout.step[3] = place.pitch;
  } else {
    resolved.layout = place.layout;
    resolved.row = place.row;
    resolved.byte = place.byte;
  }
  resolved.unit =
      common_unit(static_cast<std::uint64_t>(resolved.address), {resolved.byte, all_steps(resolved.layout)});
  return resolved;
}

DeviceQuantMove resolve(const QuantMove& move, std::int64_t tile_cols, std::span<std::byte* const> sources,
                        std::span<std::byte* const> parameters) {
  if (move.values.space == Space::kNowhere) throw InternalError("values to quantise that are nowhere");
  if (!move.values.layout.plain()) throw InternalError("values to quantise that have a layout");
  DeviceQuantMove resolved;
  resolved.values = address_of(move.values, sources, parameters);
  resolved.pitch = move.values.pitch;
  resolved.rows = static_cast<std::int32_t>(move.rows);
  resolved.cols = static_cast<std::int32_t>(move.cols);
  resolved.tiles_of_row =
      tile_cols == 0 ? 1u
                     : static_cast<std::uint32_t>(std::max<std::int64_t>(1, ceil_div(move.cols, tile_cols)));
  resolved.scope = move.scope;
  resolved.staged = move.values.space == Space::kStaging;
  const std::int64_t step = move.rows > 1 ? move.values.pitch : 0;
  resolved.aligned = common_unit(static_cast<std::uint64_t>(resolved.values), {step}) == 16;
  resolved.scale_row_bits = static_cast<std::uint8_t>(
      std::countr_zero(static_cast<std::uint64_t>(std::max<std::int64_t>(1, move.scale_rows))));
  resolved.scale_bytes = static_cast<std::uint8_t>(move.scale_bytes);
  resolved.codes = resolve(move.codes, sources, parameters);
  if (block_scale_bytes(move.quantizer.scheme) > 0)
    resolved.scales = resolve(move.scales, sources, parameters);
  resolved.cols_before = move.cols_before;
  resolved.cols_behind = move.cols_behind;
  resolved.codes_row = move.codes_box.row;
  resolved.codes_col = move.codes_box.col;
  resolved.scales_row = move.scales_box.row;
  resolved.scales_col = move.scales_box.col;
  resolved.codes_key = move.codes_key;
  resolved.scales_key = move.scales_key;
  return resolved;
}

/// A block for all its teams' tiles, but not more than `blocks`.
int grid(std::uint32_t tiles, int blocks) {
  const std::uint32_t most = (tiles + QuantKernels::kTeams - 1) / QuantKernels::kTeams;
  return static_cast<int>(std::min<std::uint32_t>(most, static_cast<std::uint32_t>(std::max(1, blocks))));
}

}  // namespace

CudaQuantPrograms::CudaQuantPrograms(std::span<const QuantMove> moves, std::span<const ProgramRange> programs,
                                     std::span<std::byte* const> sources,
                                     std::span<std::byte* const> parameters) {
  launches_.resize(programs.size());
  if (moves.empty()) return;
  kernels_ = kernels_for(moves.front().quantizer);
  std::vector<DeviceQuantMove> resolved;
  resolved.reserve(moves.size());
  for (const QuantMove& move : moves) {
    require(move, kernels_->quantizer);
    resolved.push_back(resolve(move, kernels_->tile_cols, sources, parameters));
  }
  std::vector<QuantTile> tiles;
  for (std::size_t p = 0; p < programs.size(); ++p) {
    const std::size_t first = tiles.size();
    for (std::uint32_t i = programs[p].first; i < programs[p].first + programs[p].count; ++i) {
      const DeviceQuantMove& move = resolved[i];
      if (move.rows <= 0 || move.cols <= 0) continue;
      const std::int64_t chunks = ceil_div(move.rows, kernels_->tile_rows) * move.tiles_of_row;
      if (chunks > INT32_MAX) throw InternalError("a quantiser move of more tiles than can be numbered");
      for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
        tiles.push_back({i, static_cast<std::uint32_t>(chunk)});
      }
    }
    // A thread's number of a tile goes beyond the last one by at most a grid.
    if (tiles.size() > INT32_MAX) throw InternalError("more tiles of quantiser moves than can be numbered");
    launches_[p] = {static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(tiles.size() - first)};
  }
  moves_ = DeviceArray<DeviceQuantMove>(std::span<const DeviceQuantMove>(resolved));
  tiles_ = DeviceArray<QuantTile>(std::span<const QuantTile>(tiles));
}

void CudaQuantPrograms::run(std::size_t program, std::byte* staging, const GlobalScale* scales,
                            std::uint64_t* digests, int blocks, cudaStream_t stream) const {
  const ProgramRange& launch = launches_[program];
  if (launch.count == 0) return;
  const QuantKernels::Kernel kernel = digests == nullptr ? kernels_->run : kernels_->run_with_digests;
  kernel<<<grid(launch.count, blocks), QuantKernels::kThreads, 0, stream>>>(
      {moves_.data(), tiles_.data() + launch.first, launch.count, staging, scales, digests, nullptr});
  WEIGHTCAST_CUDA(cudaGetLastError());
}

void CudaQuantPrograms::find_largest(std::size_t program, const std::byte* staging, float* largest,
                                     int blocks, cudaStream_t stream) const {
  const ProgramRange& launch = launches_[program];
  if (launch.count == 0) return;
  // This kernel only reads staging.
  kernels_->find_largest<<<grid(launch.count, blocks), QuantKernels::kThreads, 0, stream>>>(
      {moves_.data(), tiles_.data() + launch.first, launch.count, const_cast<std::byte*>(staging), nullptr,
       nullptr, largest});
  WEIGHTCAST_CUDA(cudaGetLastError());
}

}  // namespace weightcast
