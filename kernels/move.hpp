#pragma once

#include <cstdint>

#include "core/matrix_layout.hpp"

namespace weightcast {

/// What happens to the bytes of a move on the way.
enum class MoveOp : std::uint8_t {
  kCopy,
  kZero,       ///< unpack only: the buffer's bytes become zero, staging is not read
  kF32ToBF16,  ///< pack only: the buffer holds float32, staging receives bfloat16, rounded to nearest even
  kBF16ToF32,  ///< where it comes from is bfloat16, where it goes becomes float32; without a layout
  // Unpack only, without a layout: the buffer receives −e^x of what comes (core/negated_exp.hpp), in float32.
  kNegatedExp,        ///< of float32
  kNegatedExpOfBF16,  ///< of bfloat16
  // Without a layout: what arrives is 1 more than what comes, of the same type (core/one_more.hpp).
  kOneMoreBF16,
  kOneMoreF32,
};

constexpr bool adds_one(MoveOp op) {
  return op == MoveOp::kOneMoreBF16 || op == MoveOp::kOneMoreF32;
}

/// One flat, trivially copyable descriptor: `rows` rows of `row_bytes` bytes between a run of a staging
/// buffer and a strided region of a numbered buffer (a source tensor when packing, a parameter when
/// unpacking). The run is gapless, unless the weights of a rank that is trainer and inference rank stand in
/// for staging.
struct Move {
  std::int64_t offset = 0;   ///< bytes from the start of the numbered buffer to the first row
  std::int64_t pitch = 0;    ///< bytes from row to row in the numbered buffer
  std::int64_t staging = 0;  ///< bytes from the start of the bucket to the first row
  std::int64_t rows = 0;
  std::int64_t row_bytes = 0;  ///< on the staging side
  std::uint32_t buffer = 0;    ///< which numbered buffer
  MoveOp op = MoveOp::kCopy;
  std::int64_t staging_pitch = 0;  ///< bytes from row to row on the staging side; 0: gapless

  /// With a layout, in place of the pitch: the rows are those from `row` on, from byte `byte` on, of the
  /// matrix that it places from `offset` on.
  MatrixLayout layout = {};
  std::int64_t row = 0;
  std::int64_t byte = 0;

  std::int64_t staging_step() const { return staging_pitch == 0 ? row_bytes : staging_pitch; }

  bool converts() const { return op != MoveOp::kCopy && op != MoveOp::kZero; }

  /// True when the rows lie one behind the other on both sides, byte for byte.
  bool dense() const {
    return !converts() && layout.plain() &&
           (rows == 1 || (pitch == row_bytes && staging_step() == row_bytes));
  }
  std::int64_t bytes() const { return rows * row_bytes; }
};

/// Entries [first, first + count) of a flat array of moves or boxes: a program, the input of one launch.
struct ProgramRange {
  std::uint32_t first = 0;
  std::uint32_t count = 0;
};

}  // namespace weightcast
