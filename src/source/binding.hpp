#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/shape.hpp"
#include "model/family.hpp"
#include "storage/checkpoint.hpp"

namespace weightcast {

/// What happens to elements between a checkpoint and the model.
enum class Cast : std::uint8_t {
  kNone,
  kRound,  ///< float32 to bfloat16, to nearest even
  kWiden,  ///< bfloat16 to float32: scales that a quantised checkpoint keeps short
};

/// A box of a canonical tensor and where a checkpoint has it: its first element is at (row, col) of the
/// matrix view of stored tensor `stored`.
struct Bound {
  std::uint32_t stored = 0;
  Cast cast = Cast::kNone;
  Box box;
  std::int64_t row = 0;
  std::int64_t col = 0;
};

/// A stored tensor that the model does not need because it must repeat one of its tensors: the head of a
/// model whose head is tied to its embedding.
struct Copy {
  std::uint32_t stored = 0;
  std::uint32_t tensor = 0;
};

/// A checkpoint, or what a trainer rank holds, seen as a model.
struct Binding {
  std::vector<Bound> bounds;          ///< by tensor; those of one tensor do not overlap
  std::vector<std::uint32_t> starts;  ///< of each catalog tensor's bounds, and one behind the last
  std::int64_t cast_tensors = 0;      ///< that are rounded
  std::vector<Copy> copies;           ///< of a whole checkpoint

  std::span<const Bound> of(std::uint32_t tensor) const {
    return std::span(bounds).subspan(starts[tensor], starts[tensor + 1] - starts[tensor]);
  }

  /// For the report; empty when nothing is cast.
  std::string note() const;
};

/// What a tensor stored as `stored` goes through for a model that wants `wanted`. Bytes that hold codes or
/// exponents are what the model says they are. Throws InputError naming the checkpoint and the tensor for any
/// other conversion.
Cast cast_for(const Checkpoint& checkpoint, const StoredTensor& stored, DType wanted);

/// Finds every tensor of the model in the checkpoint, under its own name (source/checkpoint_names.hpp) or in
/// another stored form. What a tied model has stored as its head alone is its embedding. Throws InputError
/// naming checkpoint and tensor for one that is missing, there twice, not part of the model, of the wrong
/// shape, or of a dtype that is not the model's (float32 for a bfloat16 model is cast; nothing else is). What
/// lies beside weights (model/beside_weights.hpp), has no elements, or is of a type that the model has no use
/// for is left out, and so is a tensor that cannot be read where the model does not need it.
Binding bind(const Family& family, const Checkpoint& checkpoint);

}  // namespace weightcast
