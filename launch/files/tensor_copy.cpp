#include "launch/files/tensor_copy.hpp"

#include <algorithm>
#include <vector>

#include "control/signals.hpp"

namespace weightcast {

void copy_matrix(TensorFileWriter& to, std::size_t index, std::int64_t offset, const Shape& shape,
                 std::int64_t element_bytes, Progress& progress,
                 const std::function<void(const Box&, std::span<std::byte>)>& read) {
  std::vector<std::byte> piece(
      static_cast<std::size_t>(std::min(kCopyBytes, shape.elements() * element_bytes)));
  for_each_box(shape, element_bytes, [&](const Box& box) {
    require_no_signal(kNothingChanged);
    const auto bytes = std::span(piece).first(static_cast<std::size_t>(box.area() * element_bytes));
    read(box, bytes);
    to.write(index, offset + (box.row * shape.cols() + box.col) * element_bytes, bytes);
    progress.advance(static_cast<std::int64_t>(bytes.size()));
  });
}

void for_each_box(const Shape& shape, std::int64_t element_bytes,
                  const std::function<void(const Box&)>& visit) {
  const std::int64_t elements = kCopyBytes / element_bytes;
  const std::int64_t cols = std::min(shape.cols(), elements);
  const std::int64_t rows = std::max<std::int64_t>(1, elements / std::max<std::int64_t>(1, shape.cols()));
  for (std::int64_t row = 0; row < shape.rows(); row += rows) {
    for (std::int64_t col = 0; col < shape.cols(); col += cols) {
      visit({row, std::min(rows, shape.rows() - row), col, std::min(cols, shape.cols() - col)});
    }
  }
}

}  // namespace weightcast
