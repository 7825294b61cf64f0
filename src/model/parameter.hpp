#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/dtype.hpp"
#include "core/matrix_layout.hpp"
#include "core/shape.hpp"
#include "model/catalog.hpp"

namespace weightcast {

/// A box of one tensor that feeds a region of one parameter: element (r, c) of the box lies at byte
/// `offset + r × pitch + c × element bytes` of the parameter. With a layout it is row r and byte
/// c × element bytes of the matrix that the layout places from `offset` on.
struct Part {
  std::uint32_t tensor = 0;
  Box box;
  std::int64_t offset = 0;
  std::int64_t pitch = 0;
  MatrixLayout layout = {};
};

/// Bytes of a parameter that no tensor feeds and that must be zero: a run from `offset` on or, with a layout,
/// `bytes` bytes from `byte` on of each of the rows [row, row + rows) of its matrix.
struct Padding {
  std::int64_t offset = 0;
  std::int64_t bytes = 0;
  std::int64_t byte = 0;
  std::int64_t row = 0;
  std::int64_t rows = 1;
  MatrixLayout layout = {};
};

/// A named buffer of the inference engine on one rank: final shape, dtype, and what goes where in it.
struct Parameter {
  std::string name;
  DType dtype = DType::kBF16;
  Shape shape;
  std::vector<Part> parts;
  std::vector<Padding> padding;

  std::int64_t bytes() const { return shape.elements() * dtype_bytes(dtype); }
};

/// Where a piece of a part's box lies in the parameter's own matrix view. The part's rows must be as far
/// apart as the parameter's.
Box place_in(const Parameter& parameter, const Part& part, const Box& piece);

/// A box of a named tensor, before it has a place.
struct TensorBox {
  std::uint32_t tensor = 0;
  Box box;
};

/// The parameter that holds `boxes` one behind the other, each row-major without gaps, and zeros behind the
/// last. All dense layouts are of this form: a fused qkv is three boxes, w13 two for each expert. Throws
/// InternalError when the boxes do not fit the shape.
Parameter stack(const Catalog& catalog, std::string name, Shape shape, const std::vector<TensorBox>& boxes);

/// A box, and the matrix of `rows` × `cols` elements that a layout places from byte `offset` of a parameter
/// on: the box is its upper left corner, the rest of it is zero.
struct PlacedBox {
  TensorBox from;
  std::int64_t offset = 0;
  MatrixLayout layout;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
};

/// The parameter of such matrices. Throws InternalError for a box larger than its matrix.
Parameter place(const Catalog& catalog, std::string name, Shape shape, const std::vector<PlacedBox>& boxes);

}  // namespace weightcast
