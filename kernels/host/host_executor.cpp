#include <algorithm>
#include <cstring>

#include "core/float_bits.hpp"
#include "kernels/digest.hpp"
#include "kernels/executor.hpp"
#include "kernels/host/host_quantizer.hpp"
#include "kernels/host/negated_exp_row.hpp"
#include "kernels/host/one_more_row.hpp"

namespace weightcast {

namespace {

/// Calls `each(buffer offset, staging offset, bytes)` for runs of bytes that lie together on both sides.
template <typename Each>
void for_each_run(const Move& move, Each each) {
  if (move.layout.plain()) {
    const std::int64_t rows = move.dense() ? 1 : move.rows;
    const std::int64_t bytes = move.dense() ? move.bytes() : move.row_bytes;
    for (std::int64_t row = 0; row < rows; ++row) {
      each(move.offset + row * move.pitch, move.staging + row * move.staging_step(), bytes);
    }
    return;
  }
  // A few rows at a time, so that where columns lie together the lines of memory that they share stay near.
  constexpr std::int64_t kRowsAtOnce = 32;
  const MatrixLayout& layout = move.layout;
  for (std::int64_t first = 0; first < move.rows; first += kRowsAtOnce) {
    const std::int64_t end = std::min(first + kRowsAtOnce, move.rows);
    for (std::int64_t byte = 0; byte < move.row_bytes;) {
      const std::int64_t run = layout.run(move.byte + byte, move.row_bytes - byte);
      const std::int64_t column = move.offset + layout.byte_offset(move.byte + byte);
      for (std::int64_t row = first; row < end; ++row) {
        each(column + layout.row_offset(move.row + row), move.staging + row * move.staging_step() + byte,
             run);
      }
      byte += run;
    }
  }
}

/// memcpy that is a single store where a run is one element.
void copy_run(std::byte* to, const std::byte* from, std::int64_t bytes) {
  switch (bytes) {
    case 2:
      std::memcpy(to, from, 2);
      return;
    case 4:
      std::memcpy(to, from, 4);
      return;
    case 128:
      std::memcpy(to, from, 128);
      return;
    default:
      std::memcpy(to, from, size(bytes));
  }
}

class HostExecutor final : public Executor {
 public:
  void pack(std::span<const Move> program, std::span<const std::byte* const> buffers,
            std::byte* staging) const override {
    for (const Move& move : program) {
      const std::byte* const buffer = buffers[move.buffer];
      if (move.op == MoveOp::kF32ToBF16) {
        for (std::int64_t row = 0; row < move.rows; ++row) {
          cast_row(buffer + move.offset + row * move.pitch,
                   staging + move.staging + row * move.staging_step(), move.row_bytes / 2);
        }
      } else if (move.op == MoveOp::kBF16ToF32) {
        for (std::int64_t row = 0; row < move.rows; ++row) {
          widen_row(buffer + move.offset + row * move.pitch,
                    staging + move.staging + row * move.staging_step(), move.row_bytes / 4);
        }
      } else if (adds_one(move.op)) {
        const std::int64_t element = move.op == MoveOp::kOneMoreF32 ? 4 : 2;
        for (std::int64_t row = 0; row < move.rows; ++row) {
          one_more_row(buffer + move.offset + row * move.pitch, element,
                       staging + move.staging + row * move.staging_step(), move.row_bytes / element);
        }
      } else {
        for_each_run(move, [&](std::int64_t from, std::int64_t to, std::int64_t bytes) {
          copy_run(staging + to, buffer + from, bytes);
        });
      }
    }
  }

  void unpack(std::span<const Move> program, const std::byte* staging,
              std::span<std::byte* const> buffers) const override {
    for (const Move& move : program) {
      std::byte* const buffer = buffers[move.buffer];
      if (move.op == MoveOp::kZero) {
        for_each_run(move, [&](std::int64_t to, std::int64_t, std::int64_t bytes) {
          std::memset(buffer + to, 0, size(bytes));
        });
      } else if (move.op == MoveOp::kBF16ToF32) {
        for (std::int64_t row = 0; row < move.rows; ++row) {
          widen_row(staging + move.staging + row * move.staging_step(),
                    buffer + move.offset + row * move.pitch, move.row_bytes / 2);
        }
      } else if (move.op == MoveOp::kNegatedExp || move.op == MoveOp::kNegatedExpOfBF16) {
        const std::int64_t element = move.op == MoveOp::kNegatedExp ? 4 : 2;
        for (std::int64_t row = 0; row < move.rows; ++row) {
          negated_exp_row(staging + move.staging + row * move.staging_step(), element,
                          buffer + move.offset + row * move.pitch, move.row_bytes / element);
        }
      } else if (adds_one(move.op)) {
        const std::int64_t element = move.op == MoveOp::kOneMoreF32 ? 4 : 2;
        for (std::int64_t row = 0; row < move.rows; ++row) {
          one_more_row(staging + move.staging + row * move.staging_step(), element,
                       buffer + move.offset + row * move.pitch, move.row_bytes / element);
        }
      } else {
        for_each_run(move, [&](std::int64_t to, std::int64_t from, std::int64_t bytes) {
          copy_run(buffer + to, staging + from, bytes);
        });
      }
    }
  }

  void quantize(std::span<const QuantMove> program, const QuantBuffers& buffers,
                std::span<const GlobalScale> globals, std::span<QuantDigests> digests) const override {
    quantize_on_host(program, buffers, globals, digests);
  }

  void find_largest(std::span<const QuantMove> program, const QuantBuffers& buffers,
                    std::span<float> largest) const override {
    find_largest_on_host(program, buffers, largest);
  }

  void digest(std::span<const DigestBox> boxes, std::span<const std::byte* const> buffers,
              std::span<std::uint64_t> results) const override {
    std::transform(boxes.begin(), boxes.end(), results.begin(), [&](const DigestBox& box) {
      const std::byte* const data = buffers[box.buffer] + box.offset;
      if (box.negated_exp) {
        return negated_exp_digest(data, box.pitch, box.box, box.element_bytes, box.tensor_key);
      }
      if (box.one_more) return one_more_digest(data, box.pitch, box.box, box.element_bytes, box.tensor_key);
      return box.layout.plain() ? digest_box(data, box.pitch, box.box, box.element_bytes, box.tensor_key)
                                : digest_box(data, box.layout, box.row, box.byte, box.box, box.element_bytes,
                                             box.tensor_key);
    });
  }

  std::int64_t first_not_zero(std::span<const Move> program,
                              std::span<const std::byte* const> buffers) const override {
    for (std::size_t i = 0; i < program.size(); ++i) {
      const std::byte* const buffer = buffers[program[i].buffer];
      bool dirty = false;
      for_each_run(program[i], [&](std::int64_t at, std::int64_t, std::int64_t bytes) {
        dirty = dirty ||
                std::any_of(buffer + at, buffer + at + bytes, [](std::byte b) { return b != std::byte{0}; });
      });
      if (dirty) return static_cast<std::int64_t>(i);
    }
    return -1;
  }

 private:
  static void cast_row(const std::byte* from, std::byte* to, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
      float value = 0;
      std::memcpy(&value, from + i * 4, 4);
      const std::uint16_t bits = bf16_bits(value);
      std::memcpy(to + i * 2, &bits, 2);
    }
  }

  static void widen_row(const std::byte* from, std::byte* to, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
      std::uint16_t bits = 0;
      std::memcpy(&bits, from + i * 2, 2);
      const float value = bf16_value(bits);
      std::memcpy(to + i * 4, &value, 4);
    }
  }
};

}  // namespace

std::unique_ptr<Executor> make_host_executor() {
  return std::make_unique<HostExecutor>();
}

}  // namespace weightcast
