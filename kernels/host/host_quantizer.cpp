#include "kernels/host/host_quantizer.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <vector>

#include "core/error.hpp"
#include "core/float_bits.hpp"
#include "core/units.hpp"
#include "kernels/digest.hpp"

namespace weightcast {

namespace {

// Rows that are quantised together where no scale asks for more: column keys of digests are then shared.
constexpr std::int64_t kStripRows = 32;

const std::byte* base_of(const MatrixPlace& place, const QuantBuffers& buffers) {
  switch (place.space) {
    case Space::kSource:
      return buffers.sources[place.buffer];
    case Space::kStaging:
      return buffers.staging;
    case Space::kParameter:
      return buffers.parameters[place.buffer];
    case Space::kNowhere:
      break;
  }
  throw InternalError("values to quantise that are nowhere");
}

/// Where codes or scales are written.
std::byte* writable(const MatrixPlace& place, const QuantBuffers& buffers) {
  return place.space == Space::kStaging ? buffers.staging : buffers.parameters[place.buffer];
}

/// The largest magnitude of bfloat16 bits; what is no number counts as zero. Signed, because there is a
/// maximum of vectors of signed halves on every machine.
std::int16_t largest_bits(const std::byte* values, std::int64_t count, std::int16_t largest) {
  for (std::int64_t i = 0; i < count; ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, values + 2 * i, 2);
    const auto magnitude = static_cast<std::int16_t>(bits & 0x7fffu);
    const std::int16_t number = magnitude > 0x7f80 ? std::int16_t{0} : magnitude;
    largest = number > largest ? number : largest;
  }
  return largest;
}

float value_of(std::int16_t magnitude) {
  return bf16_value(static_cast<std::uint16_t>(magnitude));
}

/// Quantises a move strip by strip through a little memory of its own, so that what is written and what the
/// digest is of are the same bytes.
template <QuantScheme S, QuantRule R>
class HostQuantizer {
 public:
  HostQuantizer(const QuantMove& move, const QuantBuffers& buffers, std::span<const GlobalScale> globals)
      : move_(move), buffers_(buffers), values_(base_of(move.values, buffers)) {
    if (move.scope != QuantMove::kNoScope) global_ = globals[move.scope];
  }

  QuantDigests run(bool digests) {
    const std::int64_t rows_each = std::max(kBlockRows, kStripRows);
    codes_.resize(size(std::min(rows_each, move_.rows) * move_.codes_box.cols));
    scales_.resize(size(ceil_div(std::min(rows_each, move_.rows), move_.scale_rows) * scale_row_bytes()));
    QuantDigests sum;
    for (std::int64_t row = 0; row < move_.rows; row += rows_each) {
      const std::int64_t rows = std::min(rows_each, move_.rows - row);
      quantize(row, rows);
      const std::int64_t scale_row = row / move_.scale_rows;
      const std::int64_t scale_rows = ceil_div(rows, move_.scale_rows);
      write(move_.codes, row, rows, codes_.data(), move_.codes_box.cols);
      if (kHasScales) write(move_.scales, scale_row, scale_rows, scales_.data(), scale_row_bytes());
      if (!digests) continue;
      const Box& codes = move_.codes_box;
      sum.codes += digest_box(codes_.data(), codes.cols, {codes.row + row, rows, codes.col, codes.cols}, 1,
                              move_.codes_key);
      if (!kHasScales) continue;
      const Box& scales = move_.scales_box;
      sum.scales += digest_box(scales_.data(), scale_row_bytes(),
                               {scales.row + scale_row, scale_rows, scales.col, scales.cols},
                               move_.scale_bytes, move_.scales_key);
    }
    return sum;
  }

 private:
  static constexpr Quantizer kQuantizer{S, R};
  static constexpr std::int64_t kBlockRows = unit_rows(S);
  static constexpr int kPerByte = codes_per_byte(S);
  static constexpr bool kHasScales = block_scale_bytes(S) > 0;

  std::int64_t scale_row_bytes() const { return move_.scales_box.cols * move_.scale_bytes; }

  /// Fills codes_ and scales_ with those of some rows.
  void quantize(std::int64_t row, std::int64_t rows) {
    const std::int64_t block_cols_or_all = block_cols(S) == 0 ? move_.cols : block_cols(S);
    for (std::int64_t r = 0; r < rows; r += kBlockRows) {
      const std::int64_t count = std::min(kBlockRows, rows - r);
      for (std::int64_t col = 0; col < move_.cols; col += block_cols_or_all) {
        quantize_block(row, r, count, col, std::min(block_cols_or_all, move_.cols - col));
      }
    }
  }

  void quantize_block(std::int64_t strip, std::int64_t r, std::int64_t rows, std::int64_t col,
                      std::int64_t cols) {
    const auto values_of = [&](std::int64_t i) { return values_ + move_.values.at(strip + r + i, 2 * col); };
    std::int16_t largest = 0;
    for (std::int64_t i = 0; i < rows && kHasScales; ++i) {
      // Beyond the box where the scale is that of a whole row.
      const bool whole = block_cols(S) == 0;
      const std::int64_t before = whole ? move_.cols_before : 0;
      const std::int64_t behind = whole ? move_.cols_behind : 0;
      largest = largest_bits(values_of(i) - 2 * before, before + cols + behind, largest);
    }
    const BlockScale scale = block_scale(kQuantizer, value_of(largest), global_);
    if (kHasScales) store_scale(r, rows, col, scale.stored);
    for (std::int64_t i = 0; i < rows; ++i) {
      encode_row(values_of(i), cols, scale, codes_.data() + (r + i) * move_.codes_box.cols + col / kPerByte);
    }
  }

  void store_scale(std::int64_t r, std::int64_t rows, std::int64_t col, std::uint32_t stored) {
    // An fp32 power of two, kept as its exponent.
    if (S == QuantScheme::kFp8Block && move_.scale_bytes == 1) stored >>= 23;
    for (std::int64_t i = r; i < r + rows; i += move_.scale_rows) {
      std::memcpy(scales_.data() + i / move_.scale_rows * scale_row_bytes() +
                      col / move_.scale_cols * move_.scale_bytes,
                  &stored, size(move_.scale_bytes));
    }
  }

  /// Loops that compilers make vectors of: nothing here depends on an element's value.
  static void encode_row(const std::byte* values, std::int64_t cols, BlockScale scale, std::byte* codes) {
    if constexpr (kPerByte == 1) {
      encode_run(values, cols, scale, codes);
      return;
    }
    // One code in a byte at first.
    constexpr std::int64_t kRun = 64;
    std::array<std::byte, kRun> run{};
    for (std::int64_t col = 0; col < cols; col += kRun) {
      const std::int64_t count = std::min(kRun, cols - col);
      encode_run(values + 2 * col, count, scale, run.data());
      if (count % 2 != 0) run[size(count)] = std::byte{0};
      for (std::int64_t i = 0; i < (count + 1) / 2; ++i) {
        std::uint16_t pair = 0;
        std::memcpy(&pair, run.data() + 2 * i, 2);
        codes[col / 2 + i] = static_cast<std::byte>((pair & 0xfu) | (pair >> 4u));
      }
    }
  }

  static void encode_run(const std::byte* values, std::int64_t count, BlockScale scale, std::byte* codes) {
    for (std::int64_t i = 0; i < count; ++i) {
      std::uint16_t bits = 0;
      std::memcpy(&bits, values + 2 * i, 2);
      codes[i] = std::byte{encode(kQuantizer, bf16_value(bits), scale)};
    }
  }

  void write(const MatrixPlace& place, std::int64_t row, std::int64_t rows, const std::byte* from,
             std::int64_t row_bytes) const {
    if (place.space == Space::kNowhere) return;
    std::byte* const to = writable(place, buffers_);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t byte = 0; byte < row_bytes;) {
        const std::int64_t run =
            place.layout.plain() ? row_bytes : place.layout.run(place.byte + byte, row_bytes - byte);
        std::memcpy(to + place.at(row + r, byte), from + r * row_bytes + byte, size(run));
        byte += run;
      }
    }
  }

  const QuantMove& move_;
  const QuantBuffers& buffers_;
  const std::byte* values_;
  GlobalScale global_;
  std::vector<std::byte> codes_;
  std::vector<std::byte> scales_;
};

template <QuantScheme S, QuantRule R>
QuantDigests run(const QuantMove& move, const QuantBuffers& buffers, std::span<const GlobalScale> globals,
                 bool digests) {
  return HostQuantizer<S, R>(move, buffers, globals).run(digests);
}

/// The function for a quantiser. Each has its own code, so that no element asks which one it is.
auto* quantizer_for(Quantizer quantizer) {
  using enum QuantScheme;
  using enum QuantRule;
  struct Entry {
    Quantizer quantizer;
    decltype(&run<kFp8Block, kSlime>) function;
  };
  static constexpr Entry kEntries[] = {
      {{kFp8Block, kSlime}, &run<kFp8Block, kSlime>},
      {{kFp8Block, kDeepGemm}, &run<kFp8Block, kDeepGemm>},
      {{kFp8Block, kFlashInfer}, &run<kFp8Block, kFlashInfer>},
      {{kFp8Block, kUe8m0}, &run<kFp8Block, kUe8m0>},
      {{kFp8Tensor, kSglang}, &run<kFp8Tensor, kSglang>},
      {{kFp8Tensor, kMiles}, &run<kFp8Tensor, kMiles>},
      {{kFp8Channel, kDivide}, &run<kFp8Channel, kDivide>},
      {{kMxfp8, kRoundUp}, &run<kMxfp8, kRoundUp>},
      {{kNvfp4, kTe}, &run<kNvfp4, kTe>},
      {{kNvfp4, kUnit}, &run<kNvfp4, kUnit>},
      {{kMxfp4, kRoundUp}, &run<kMxfp4, kRoundUp>},
      {{kMxfp4, kRoundUpTiesDown}, &run<kMxfp4, kRoundUpTiesDown>},
      {{kMxfp4, kOcp}, &run<kMxfp4, kOcp>},
  };
  const auto* found = std::find_if(std::begin(kEntries), std::end(kEntries),
                                   [&](const Entry& entry) { return entry.quantizer == quantizer; });
  if (found == std::end(kEntries)) throw InternalError("a quantiser that the host does not know");
  return found->function;
}

}  // namespace

void quantize_on_host(std::span<const QuantMove> program, const QuantBuffers& buffers,
                      std::span<const GlobalScale> globals, std::span<QuantDigests> digests) {
  for (std::size_t i = 0; i < program.size(); ++i) {
    const QuantDigests made =
        quantizer_for(program[i].quantizer)(program[i], buffers, globals, !digests.empty());
    if (!digests.empty()) digests[i] = made;
  }
}

void find_largest_on_host(std::span<const QuantMove> program, const QuantBuffers& buffers,
                          std::span<float> largest) {
  for (const QuantMove& move : program) {
    if (move.scope == QuantMove::kNoScope) continue;
    const std::byte* const values = base_of(move.values, buffers);
    std::int16_t bits = 0;
    for (std::int64_t row = 0; row < move.rows; ++row) {
      bits = largest_bits(values + move.values.at(row, 0), move.cols, bits);
    }
    largest[move.scope] = std::max(largest[move.scope], value_of(bits));
  }
}

}  // namespace weightcast
