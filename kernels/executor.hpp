#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "core/matrix_layout.hpp"
#include "core/shape.hpp"
#include "kernels/move.hpp"
#include "kernels/quant_move.hpp"

namespace weightcast {

/// The memory that places of quantiser moves lie in; a space that no move of a program names may be empty.
struct QuantBuffers {
  std::span<const std::byte* const> sources = {};
  std::byte* staging = nullptr;
  std::span<std::byte* const> parameters = {};
};

/// A box of a tensor in a numbered buffer whose digest is wanted.
struct DigestBox {
  std::int64_t offset = 0;  ///< bytes from the start of the numbered buffer to the first element
  std::int64_t pitch = 0;   ///< bytes from row to row
  Box box;                  ///< canonical coordinates
  std::uint64_t tensor_key = 0;
  std::uint32_t buffer = 0;
  std::uint32_t digest = 0;  ///< where the expected digest stands (Plan::digests)
  std::uint8_t element_bytes = 0;
  bool widened = false;      ///< what is sent and what is written are bfloat16 and float32 (widened_digest())
  bool negated_exp = false;  ///< the digest is of what engines make of the elements (negated_exp_digest())
  bool one_more = false;     ///< the digest is of 1 more than each element (one_more_digest())

  /// As in a move: with a layout, the box begins at row `row`, byte `byte` of the matrix from `offset` on.
  MatrixLayout layout = {};
  std::int64_t row = 0;
  std::int64_t byte = 0;
};

/// Runs programs: the moves of one bucket. Implementations agree byte for byte.
class Executor {
 public:
  virtual ~Executor() = default;

  /// Numbered buffers → staging.
  virtual void pack(std::span<const Move> program, std::span<const std::byte* const> buffers,
                    std::byte* staging) const = 0;

  /// Staging → numbered buffers.
  virtual void unpack(std::span<const Move> program, const std::byte* staging,
                      std::span<std::byte* const> buffers) const = 0;

  /// Runs quantiser moves; `globals[move.scope]` is the scale that a move shares with others. digests[i]
  /// receives the digests of what move i makes, also where that is not written; an empty span: none wanted.
  virtual void quantize(std::span<const QuantMove> program, const QuantBuffers& buffers,
                        std::span<const GlobalScale> globals, std::span<QuantDigests> digests) const = 0;

  /// Raises `largest[move.scope]` to the largest magnitude among the values of each move that has a scope;
  /// what is no number counts as zero.
  virtual void find_largest(std::span<const QuantMove> program, const QuantBuffers& buffers,
                            std::span<float> largest) const = 0;

  /// Digests of boxes, from the numbered buffers; results[i] belongs to boxes[i].
  virtual void digest(std::span<const DigestBox> boxes, std::span<const std::byte* const> buffers,
                      std::span<std::uint64_t> results) const = 0;

  /// Index of the first kZero move whose region is not all zero, or -1.
  virtual std::int64_t first_not_zero(std::span<const Move> program,
                                      std::span<const std::byte* const> buffers) const = 0;
};

/// The reference: one thread of the host, memory-to-memory copies.
std::unique_ptr<Executor> make_host_executor();

}  // namespace weightcast
