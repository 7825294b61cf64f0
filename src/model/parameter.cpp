#include "model/parameter.hpp"

#include <fmt/format.h>

#include "core/error.hpp"

namespace weightcast {

std::int64_t Parameter::written_bytes() const {
  std::int64_t written = bytes();
  for (const Padding& region : untouched) written -= region.rows * region.bytes;
  return written;
}

Padding region_of(const Parameter& parameter, const Part& part) {
  const Box plane = part.form.of(part.box);
  const std::int64_t row_bytes = plane.cols * dtype_bytes(parameter.dtype);
  if (!part.layout.plain()) return {part.offset, row_bytes, 0, 0, plane.rows, part.layout};
  if (part.pitch == row_bytes || plane.rows == 1) return {part.offset, plane.rows * row_bytes};
  MatrixLayout in_rows;
  in_rows.step[3] = part.pitch;
  return {part.offset, row_bytes, 0, 0, plane.rows, in_rows};
}

bool widens(const Catalog& catalog, const Parameter& parameter, const Part& part) {
  return part.form.plane == Plane::kValues && parameter.dtype == DType::kF32 &&
         catalog[part.tensor].dtype == DType::kBF16;
}

Box place_in(const Parameter& parameter, const Part& part, const Box& piece) {
  const std::int64_t element = dtype_bytes(parameter.dtype);
  const Box box = part.form.of(part.box);
  const std::int64_t first =
      part.offset / element + (piece.row - box.row) * (part.pitch / element) + (piece.col - box.col);
  return {first / parameter.shape.cols(), piece.rows, first % parameter.shape.cols(), piece.cols};
}

Parameter stack(const Catalog& catalog, std::string name, Shape shape, const std::vector<TensorBox>& boxes) {
  return stack(catalog, std::move(name), shape, boxes, {catalog[boxes.at(0).tensor].dtype});
}

Parameter stack(const Catalog& catalog, std::string name, Shape shape, const std::vector<TensorBox>& boxes,
                const PlaneType& type) {
  Parameter parameter{std::move(name), type.dtype, shape, {}, {}};
  const std::int64_t element = dtype_bytes(parameter.dtype);
  parameter.parts.reserve(boxes.size());
  std::int64_t offset = 0;
  for (const auto& [tensor, box, scope] : boxes) {
    if (!Box::whole(catalog[tensor].shape).contains(box)) {
      throw InternalError(fmt::format("parameter {} asks for {} of tensor {} {}", parameter.name,
                                      box.to_string(), catalog[tensor].name,
                                      catalog[tensor].shape.to_string()));
    }
    if (box.empty()) continue;  // a rank whose share is padding alone
    const Box plane = type.form.of(box);
    const std::int64_t pitch = plane.cols * element;
    parameter.parts.push_back({tensor, box, offset, pitch, {}, type.form, scope});
    offset += plane.rows * pitch;
  }
  if (offset > parameter.bytes()) {
    throw InternalError(fmt::format("parameter {} {} is fed {} bytes but holds {}", parameter.name,
                                    shape.to_string(), offset, parameter.bytes()));
  }
  if (offset < parameter.bytes()) parameter.padding.push_back({offset, parameter.bytes() - offset});
  return parameter;
}

Parameter place(const Catalog& catalog, std::string name, Shape shape, const std::vector<PlacedBox>& boxes) {
  return place(catalog, std::move(name), shape, boxes, {catalog[boxes.at(0).from.tensor].dtype});
}

Parameter place(const Catalog& catalog, std::string name, Shape shape, const std::vector<PlacedBox>& boxes,
                const PlaneType& type) {
  Parameter parameter{std::move(name), type.dtype, shape, {}, {}};
  const std::int64_t element = dtype_bytes(parameter.dtype);
  for (const PlacedBox& placed : boxes) {
    const auto& [tensor, box, scope] = placed.from;
    const Box plane = type.form.of(box);
    const bool fits = plane.rows <= placed.rows && plane.cols <= placed.cols;
    if (!box.empty() && !(Box::whole(catalog[tensor].shape).contains(box) && fits)) {
      throw InternalError(fmt::format("parameter {} asks for {} of tensor {} {} in {} × {}", parameter.name,
                                      box.to_string(), catalog[tensor].name,
                                      catalog[tensor].shape.to_string(), placed.rows, placed.cols));
    }
    const std::int64_t rows = box.empty() ? 0 : plane.rows;
    const std::int64_t row_bytes = placed.cols * element;
    const bool plain = placed.layout.plain();
    if (rows > 0) {
      parameter.parts.push_back(
          {tensor, box, placed.offset, plain ? row_bytes : 0, placed.layout, type.form, scope});
    }
    const auto zero = [&](std::int64_t first_row, std::int64_t end_row, std::int64_t first_col) {
      if (first_row == end_row || first_col == placed.cols) return;
      if (plain && first_col == 0) {
        parameter.padding.push_back(
            {placed.offset + first_row * row_bytes, (end_row - first_row) * row_bytes});
        return;
      }
      MatrixLayout layout = placed.layout;
      if (plain) layout.step[3] = row_bytes;
      parameter.padding.push_back({placed.offset, (placed.cols - first_col) * element, first_col * element,
                                   first_row, end_row - first_row, layout});
    };
    zero(0, rows, plane.cols);
    zero(rows, placed.rows, 0);
  }
  return parameter;
}

}  // namespace weightcast
