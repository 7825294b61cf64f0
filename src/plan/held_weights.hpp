#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/shape.hpp"
#include "model/catalog.hpp"
#include "plan/plan.hpp"

namespace weightcast {

/// A box of a tensor's values and where it lies: element (r, c) of the box at byte
/// `offset + r × pitch + c × element bytes` of buffer number `buffer`. A buffer is memory, or a tensor that a
/// checkpoint stores (source/binding.hpp).
struct HeldBox {
  std::uint32_t tensor = 0;
  Box box;
  std::uint32_t buffer = 0;
  std::int64_t offset = 0;
  std::int64_t pitch = 0;  ///< bytes
  /// Bfloat16 of a tensor that is float32: it is widened as it is packed, and an element has two bytes here.
  bool narrow = false;
  std::uint8_t turned =
      0;                  ///< the whole buffer is the box turned (core/turned.hpp), of so many kinds; 0: not
  bool less_one = false;  ///< each element is held as what it is more than 1 (core/one_more.hpp)

  /// The byte of the buffer at which element (row, col) of the tensor begins.
  std::int64_t at(std::int64_t row, std::int64_t col, std::int64_t element_bytes) const {
    return offset + (row - box.row) * pitch + (col - box.col) * element_bytes;
  }
};

/// The boxes that a trainer holds in memory, whoever made that memory, or that a checkpoint holds in files.
class HeldWeights {
 public:
  HeldWeights() = default;  ///< of no tensors

  /// Boxes of one tensor must not overlap; `tensors` is how many the catalog has.
  HeldWeights(std::vector<HeldBox> boxes, std::size_t tensors);

  std::span<const HeldBox> boxes() const { return boxes_; }
  std::span<const HeldBox> of(std::uint32_t tensor) const {
    return std::span(boxes_).subspan(starts_[tensor], starts_[tensor + 1] - starts_[tensor]);
  }

 private:
  std::vector<HeldBox> boxes_;  ///< by tensor
  std::vector<std::size_t> starts_;
};

/// One buffer in which a trainer holds what it sends, as a training framework would: for every tensor of
/// which it sends something, the rows that it sends. `bytes` is the buffer's size.
struct OwnWeights {
  HeldWeights held;
  std::int64_t bytes = 0;
};

OwnWeights own_weights(const Plan& plan, const Catalog& catalog, std::int64_t trainer);

}  // namespace weightcast
