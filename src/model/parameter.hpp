#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/dtype.hpp"
#include "core/matrix_layout.hpp"
#include "core/shape.hpp"
#include "core/units.hpp"
#include "model/catalog.hpp"

namespace weightcast {

/// What a parameter holds of a tensor: its values or, of a quantised tensor, the codes, or the scales of the
/// blocks.
enum class Plane : std::uint8_t { kValues, kCodes, kScales };

/// How a plane divides a tensor: one of its elements stands for `block_rows` × `block_cols` elements of the
/// tensor (two codes of 4 bits in a byte, a scale for 128 × 128).
struct PlaneForm {
  Plane plane = Plane::kValues;
  std::int64_t block_rows = 1;
  std::int64_t block_cols = 1;

  /// The elements of the plane for those of `box`, a box of the tensor that begins where a block does.
  constexpr Box of(const Box& box) const {
    const std::int64_t row = box.row / block_rows;
    const std::int64_t col = box.col / block_cols;
    return {row, ceil_div(box.row + box.rows, block_rows) - row, col,
            ceil_div(box.col + box.cols, block_cols) - col};
  }

  friend constexpr bool operator==(const PlaneForm& a, const PlaneForm& b) = default;
};

/// A box of one tensor that feeds a region of one parameter: element (r, c) of the box lies at byte
/// `offset + r × pitch + c × element bytes` of the parameter. With a layout it is row r and byte
/// c × element bytes of the matrix that the layout places from `offset` on. For codes and scales, (r, c)
/// count the elements of `form.of(box)`.
struct Part {
  std::uint32_t tensor = 0;
  Box box;  ///< of the tensor, whatever the plane
  std::int64_t offset = 0;
  std::int64_t pitch = 0;
  MatrixLayout layout = {};
  PlaneForm form = {};
  std::uint32_t scope = 0;  ///< of a quantised tensor: the first of the tensors that share one scale
  /// The parameter has −e^x in float32 for each value x of the tensor, which is float32
  /// (core/negated_exp.hpp).
  bool negated_exp = false;
};

/// A float32 in a parameter: the scale that the tensors of a scope share, times the factors that kernels want
/// in it.
struct Scalar {
  std::int64_t offset = 0;
  std::uint32_t scope = 0;
  float factor = 1;
  float second_factor = 1;  ///< after the first

  constexpr float value(float scale) const { return scale * factor * second_factor; }
};

/// Bytes of a parameter that no tensor feeds, most often those that must be zero: a run from `offset` on or,
/// with a layout, `bytes` bytes from `byte` on of each of the rows [row, row + rows) of its matrix.
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
  std::vector<Scalar> scalars = {};
  std::vector<Padding> untouched = {};  ///< what an update leaves as it is
  bool for_loader = false;  ///< a tensor whole, which the engine's own loader takes out of a window

  std::int64_t bytes() const { return shape.elements() * dtype_bytes(dtype); }
  /// Of these, those that an update writes.
  std::int64_t written_bytes() const;
};

/// The bytes of a parameter that a part feeds.
Padding region_of(const Parameter& parameter, const Part& part);

/// Whether the values of a part become float32 in the parameter, where the tensor holds bfloat16: an engine
/// keeps some, such as routers, in a wider type than checkpoints do.
bool widens(const Catalog& catalog, const Parameter& parameter, const Part& part);

/// Where `piece`, a box of the part's plane, lies in the parameter's own matrix view. The part's rows must be
/// as far apart as the parameter's.
Box place_in(const Parameter& parameter, const Part& part, const Box& piece);

/// A box of a named tensor, before it has a place.
struct TensorBox {
  std::uint32_t tensor = 0;
  Box box;
  std::uint32_t scope = 0;  ///< as of a part
};

/// A plane and the type of its elements.
struct PlaneType {
  DType dtype = DType::kBF16;
  PlaneForm form = {};
};

/// The parameter that holds `boxes` one behind the other, each row-major without gaps, and zeros behind the
/// last. All dense layouts are of this form: a fused qkv is three boxes, w13 two for each expert. Holds
/// values of the tensors' own type, or the plane that is named. Throws InternalError when the boxes do not
/// fit the shape.
Parameter stack(const Catalog& catalog, std::string name, Shape shape, const std::vector<TensorBox>& boxes);
Parameter stack(const Catalog& catalog, std::string name, Shape shape, const std::vector<TensorBox>& boxes,
                const PlaneType& type);

/// A box, and the matrix of `rows` × `cols` elements (of its plane) that a layout places from byte `offset`
/// of a parameter on: the box is its upper left corner, the rest of it is zero. Without a layout the rows lie
/// one behind the other.
struct PlacedBox {
  TensorBox from;
  std::int64_t offset = 0;
  MatrixLayout layout;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
};

/// The parameter of such matrices. Throws InternalError for a box larger than its matrix.
Parameter place(const Catalog& catalog, std::string name, Shape shape, const std::vector<PlacedBox>& boxes);
Parameter place(const Catalog& catalog, std::string name, Shape shape, const std::vector<PlacedBox>& boxes,
                const PlaneType& type);

}  // namespace weightcast
