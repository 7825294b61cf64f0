#include <algorithm>
#include <cstring>

#include "core/float_bits.hpp"
#include "kernels/digest.hpp"
#include "kernels/executor.hpp"

namespace weightcast {

namespace {

std::size_t size(std::int64_t bytes) {
  return static_cast<std::size_t>(bytes);
}

class HostExecutor final : public Executor {
 public:
  void pack(std::span<const Move> program, std::span<const std::byte* const> buffers,
            std::byte* staging) const override {
    for (const Move& move : program) {
      const std::byte* from = buffers[move.buffer] + move.offset;
      std::byte* to = staging + move.staging;
      if (move.op == MoveOp::kF32ToBF16) {
        for (std::int64_t row = 0; row < move.rows; ++row) {
          cast_row(from + row * move.pitch, to + row * move.staging_step(), move.row_bytes / 2);
        }
      } else if (move.dense()) {
        std::memcpy(to, from, size(move.bytes()));
      } else {
        for (std::int64_t row = 0; row < move.rows; ++row) {
          std::memcpy(to + row * move.staging_step(), from + row * move.pitch, size(move.row_bytes));
        }
      }
    }
  }

  void unpack(std::span<const Move> program, const std::byte* staging,
              std::span<std::byte* const> buffers) const override {
    for (const Move& move : program) {
      std::byte* to = buffers[move.buffer] + move.offset;
      const std::int64_t rows = move.dense() ? 1 : move.rows;
      const std::int64_t row_bytes = move.dense() ? move.bytes() : move.row_bytes;
      for (std::int64_t row = 0; row < rows; ++row) {
        if (move.op == MoveOp::kZero) {
          std::memset(to + row * move.pitch, 0, size(row_bytes));
        } else {
          std::memcpy(to + row * move.pitch, staging + move.staging + row * move.staging_step(),
                      size(row_bytes));
        }
      }
    }
  }

  void digest(std::span<const DigestBox> boxes, std::span<const std::byte* const> buffers,
              std::span<std::uint64_t> results) const override {
    std::transform(boxes.begin(), boxes.end(), results.begin(), [&](const DigestBox& box) {
      return digest_box(buffers[box.buffer] + box.offset, box.pitch, box.box, box.element_bytes,
                        box.tensor_key);
    });
  }

  std::int64_t first_not_zero(std::span<const Move> program,
                              std::span<const std::byte* const> buffers) const override {
    for (std::size_t i = 0; i < program.size(); ++i) {
      const Move& move = program[i];
      for (std::int64_t row = 0; row < move.rows; ++row) {
        const std::byte* at = buffers[move.buffer] + move.offset + row * move.pitch;
        if (std::any_of(at, at + move.row_bytes, [](std::byte b) { return b != std::byte{0}; })) {
          return static_cast<std::int64_t>(i);
        }
      }
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
};

}  // namespace

std::unique_ptr<Executor> make_host_executor() {
  return std::make_unique<HostExecutor>();
}

}  // namespace weightcast
