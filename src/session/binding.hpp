#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/family.hpp"
#include "storage/checkpoint.hpp"

namespace weightcast {

/// Where a canonical tensor lies in a checkpoint: rows from `row` on of stored tensor `stored`.
struct Bound {
  std::uint32_t stored = 0;
  std::int64_t row = 0;
  bool cast_from_f32 = false;  ///< stored as float32, wanted as bfloat16
};

/// A checkpoint seen as a model: one entry a catalog tensor.
struct Binding {
  std::vector<Bound> tensors;
  std::int64_t cast_tensors = 0;

  /// For the report; empty when nothing is cast.
  std::string note() const;
};

/// Finds every tensor of the model in the checkpoint, under its own name or in another stored form. Throws
/// InputError naming checkpoint and tensor for one that is missing, not part of the model, of the wrong
/// shape, or of a dtype that is not the model's (float32 for a bfloat16 model is cast; nothing else is).
Binding bind(const Family& family, const Checkpoint& checkpoint);

}  // namespace weightcast
