#pragma once

#include <cstddef>

#include "core/shape.hpp"
#include "memory/host_buffer.hpp"
#include "model/catalog.hpp"
#include "session/binding.hpp"
#include "storage/checkpoint.hpp"
#include "storage/reader.hpp"

namespace weightcast {

/// Reads canonical tensors of a model from a checkpoint, whatever form and precision the checkpoint keeps
/// them in. For one thread at a time.
class BoundReader {
 public:
  /// All arguments must outlive the reader.
  BoundReader(const Catalog& catalog, const Checkpoint& checkpoint, const Binding& binding);

  /// `box` of the tensor in the catalog's dtype, row-major without gaps.
  void read(std::uint32_t tensor, const Box& box, std::byte* to);

 private:
  /// Reads a box of float32 in pieces through a small buffer and rounds it into place.
  void read_cast(const StoredTensor& stored, const Box& box, std::byte* to);

  const Catalog& catalog_;
  const Checkpoint& checkpoint_;
  const Binding& binding_;
  CheckpointReader reader_;
  HostBuffer cast_scratch_;
};

}  // namespace weightcast
