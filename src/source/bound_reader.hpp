#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "core/shape.hpp"
#include "model/catalog.hpp"
#include "plan/held_weights.hpp"
#include "storage/checkpoint.hpp"
#include "storage/reader.hpp"

namespace weightcast {

/// Reads canonical tensors of a model from a checkpoint, whatever form, pieces and precision the checkpoint
/// keeps them in. All methods may be called from several threads at once.
class BoundReader {
 public:
  /// `held` is what `checkpoint` has (Binding::held). All arguments must outlive the reader.
  BoundReader(const Catalog& catalog, const Checkpoint& checkpoint, const HeldWeights& held);

  /// `box` of the tensor in the catalog's dtype, row-major without gaps. Throws InternalError for one that
  /// the checkpoint has only in part.
  void read(std::uint32_t tensor, const Box& box, std::byte* to) const;

  /// Where `box` begins in a file, if its bytes lie there one behind the other as they are wanted.
  std::optional<FilePlace> locate(std::uint32_t tensor, const Box& box) const;

  /// Fills `parts`, one after the other, from a place that `locate` has found on.
  void read(const FilePlace& place, std::span<const ReadPart> parts) const { reader_.read(place, parts); }

  /// As CheckpointReader's.
  void require_unchanged() const { reader_.require_unchanged(); }

  /// Whether parts of a box cost no more than the whole. Not where a chunk would be decompressed for each,
  /// nor where each would take a few bytes of many rows.
  bool divisible(std::uint32_t tensor) const;

 private:
  /// Reads `box`, of which the held box has all.
  void read_held(const HeldBox& held, const Box& box, std::byte* to) const;

  /// The same from a tensor of the rows in which the held box has it.
  void read_stored(const StoredTensor& stored, const HeldBox& held, const Box& box, std::byte* to) const;

  /// The same from a tensor that is the held box turned.
  void read_turned(const StoredTensor& stored, const HeldBox& held, const Box& box, std::byte* to) const;

  /// Reads a box of a stored tensor's matrix in the type of the held box's tensor.
  void read_cast_to(const StoredTensor& stored, const HeldBox& held, const Box& place, std::byte* to) const;

  /// Reads a box of bfloat16 or float32 and adds 1 to each element, before it is cast to `wanted`.
  void read_one_more(const StoredTensor& stored, const Box& box, DType wanted, std::byte* to) const;

  /// Reads a box of bfloat16 as float32.
  void read_widened(const StoredTensor& stored, const Box& box, std::byte* to) const;

  /// Reads a box of float32 in pieces through a small buffer and rounds it into place.
  void read_cast(const StoredTensor& stored, const Box& box, std::byte* to) const;

  const Catalog& catalog_;
  const Checkpoint& checkpoint_;
  const HeldWeights& held_;
  CheckpointReader reader_;
};

}  // namespace weightcast
