#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/dtype.hpp"
#include "core/shape.hpp"
#include "model/family.hpp"
#include "plan/held_weights.hpp"
#include "storage/checkpoint.hpp"

namespace weightcast {

/// What happens to elements between a checkpoint and the model.
enum class Cast : std::uint8_t {
  kNone,
  kRound,  ///< float32 to bfloat16, to nearest even
  kWiden,  ///< bfloat16 to float32: scales that a quantised checkpoint keeps short
};

/// A stored tensor that the model does not need because it must repeat one of its tensors: the head of a
/// model whose head is tied to its embedding.
struct Copy {
  std::uint32_t stored = 0;
  std::uint32_t tensor = 0;
};

/// A stored tensor that is no tensor of the model, and so is never read.
struct LeftOut {
  std::string name;  ///< without wrappers, as the model's own are called
  std::int64_t bytes = 0;
};

/// A checkpoint, or what a trainer rank holds, seen as a model.
struct Binding {
  /// Its buffers are the checkpoint's tensors: buffer number s is what tensor number s has of values,
  /// row-major in the stored dtype, wherever the file keeps them.
  HeldWeights held;
  std::int64_t cast_tensors = 0;  ///< that are rounded
  std::vector<Copy> copies;       ///< of a whole checkpoint
  std::vector<LeftOut> left_out;  ///< of a whole checkpoint

  /// For the report; empty when nothing is cast.
  std::string note() const;
};

/// What elements stored as `stored` go through for a model that wants `wanted`, if it may have them at all.
Cast cast_between(DType stored, DType wanted);

/// Throws InputError naming the checkpoint and the tensor unless a model that wants `wanted` may have it from
/// a tensor stored as `stored`: as it is, through a cast, or, where bytes hold codes or exponents, as what
/// the model says they are. Only scales, and what engines widen, may be widened.
void require_castable(const Checkpoint& checkpoint, const StoredTensor& stored, DType wanted,
                      bool widened = false);

/// `box` of tensor number `tensor` as `stored`, which is buffer number `buffer`, has it: from element number
/// `first` of that on, row under row. `stored` must have been found to be of the shape that the model gives
/// it, which bounds the offset.
HeldBox held_in(const StoredTensor& stored, std::uint32_t buffer, std::uint32_t tensor, const Box& box,
                std::int64_t first = 0);

/// Finds every tensor of the model in the checkpoint, under its own name (source/checkpoint_names.hpp) or in
/// another stored form. What a tied model has stored as its head alone is its embedding. Throws InputError
/// naming checkpoint and tensor for one that is missing, there twice, not part of the model, of the wrong
/// shape, or of a dtype that is not the model's (float32 for a bfloat16 model is cast; nothing else is). What
/// lies beside weights (model/beside_weights.hpp), has no elements, or is of a type that the model has no use
/// for is left out, and so is a tensor that cannot be read where the model does not need it.
Binding bind(const Family& family, const Checkpoint& checkpoint);

}  // namespace weightcast
