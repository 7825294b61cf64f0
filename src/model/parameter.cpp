#include "model/parameter.hpp"

#include <fmt/format.h>

#include "core/error.hpp"

namespace weightcast {

Box place_in(const Parameter& parameter, const Part& part, const Box& piece) {
  const std::int64_t element = dtype_bytes(parameter.dtype);
  const std::int64_t first = part.offset / element + (piece.row - part.box.row) * (part.pitch / element) +
                             (piece.col - part.box.col);
  return {first / parameter.shape.cols(), piece.rows, first % parameter.shape.cols(), piece.cols};
}

Parameter stack(const Catalog& catalog, std::string name, Shape shape, const std::vector<TensorBox>& boxes) {
  Parameter parameter{std::move(name), catalog[boxes.at(0).tensor].dtype, shape, {}, {}};
  const std::int64_t element = dtype_bytes(parameter.dtype);
  parameter.parts.reserve(boxes.size());
  std::int64_t offset = 0;
  for (const auto& [tensor, box] : boxes) {
    if (!Box::whole(catalog[tensor].shape).contains(box)) {
      throw InternalError(fmt::format("parameter {} asks for {} of tensor {} {}", parameter.name,
                                      box.to_string(), catalog[tensor].name,
                                      catalog[tensor].shape.to_string()));
    }
    if (box.empty()) continue;  // a rank whose share is padding alone
    const std::int64_t pitch = box.cols * element;
    parameter.parts.push_back({tensor, box, offset, pitch});
    offset += box.rows * pitch;
  }
  if (offset > parameter.bytes()) {
    throw InternalError(fmt::format("parameter {} {} is fed {} bytes but holds {}", parameter.name,
                                    shape.to_string(), offset, parameter.bytes()));
  }
  if (offset < parameter.bytes()) parameter.padding.push_back({offset, parameter.bytes() - offset});
  return parameter;
}

Parameter place(const Catalog& catalog, std::string name, Shape shape, const std::vector<PlacedBox>& boxes) {
  Parameter parameter{std::move(name), catalog[boxes.at(0).from.tensor].dtype, shape, {}, {}};
  const std::int64_t element = dtype_bytes(parameter.dtype);
  for (const PlacedBox& placed : boxes) {
    const auto& [tensor, box] = placed.from;
    if (!Box::whole(catalog[tensor].shape).contains(box) || box.rows > placed.rows ||
        box.cols > placed.cols) {
      throw InternalError(fmt::format("parameter {} asks for {} of tensor {} {} in {} × {}", parameter.name,
                                      box.to_string(), catalog[tensor].name,
                                      catalog[tensor].shape.to_string(), placed.rows, placed.cols));
    }
    const std::int64_t rows = box.empty() ? 0 : box.rows;
    if (rows > 0) parameter.parts.push_back({tensor, box, placed.offset, 0, placed.layout});
    const auto zero = [&](std::int64_t first_row, std::int64_t end_row, std::int64_t first_col) {
      if (first_row == end_row || first_col == placed.cols) return;
      parameter.padding.push_back({placed.offset, (placed.cols - first_col) * element, first_col * element,
                                   first_row, end_row - first_row, placed.layout});
    };
    zero(0, rows, box.cols);
    zero(rows, placed.rows, 0);
  }
  return parameter;
}

}  // namespace weightcast
