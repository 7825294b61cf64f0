#include "model/quantization.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/error.hpp"
#include "core/units.hpp"
#include "model/layouts/scale_swizzle.hpp"

namespace weightcast {

namespace {

constexpr std::int64_t kTileQuarterRows = 32;

/// How many of `rows` rows from row `first` of a matrix on can be told where they lie in tiles by one layout:
/// whole tiles, or rows of one tile from a quarter of it on, or of one quarter.
std::int64_t rows_of_one_layout(std::int64_t first, std::int64_t rows) {
  if (first % kTileRows == 0) return rows < kTileRows ? rows : rows / kTileRows * kTileRows;
  const std::int64_t unit = first % kTileQuarterRows == 0 ? kTileRows : kTileQuarterRows;
  return std::min(rows, unit - first % unit);
}

/// Boxes one above the other, each cut where one layout ends.
std::vector<TensorBox> cut_at_tiles(const std::vector<TensorBox>& boxes) {
  std::vector<TensorBox> cut;
  std::int64_t first = 0;
  for (TensorBox rest : boxes) {
    while (rest.box.rows > 0) {
      TensorBox top = rest;
      top.box.rows = rows_of_one_layout(first, rest.box.rows);
      cut.push_back(top);
      first += top.box.rows;
      rest.box.row += top.box.rows;
      rest.box.rows -= top.box.rows;
    }
  }
  return cut;
}

/// The scales of boxes one above the other, with one scale in `cols` of a row, in tiles of 128 × 4
/// (scale_swizzle.hpp) as FP4 kernels read them: [up(rows,128), up(cols,4)].
Parameter in_tiles(const Catalog& catalog, const std::string& name, const std::vector<TensorBox>& boxes,
                   std::int64_t rows, std::int64_t cols, const PlaneType& type) {
  const SlabLayout slab = swizzled({rows, cols, 1});
  std::vector<PlacedBox> placed;
  std::int64_t first = 0;
  const auto put = [&](const TensorBox& box, std::int64_t count) {
    placed.push_back({box, slab.layout.row_offset(first), slab.layout, count, slab.cols});
    first += count;
  };
  for (const TensorBox& box : boxes) put(box, box.box.rows);
  // Padding: boxes of nothing.
  while (first < slab.rows) put({boxes.front().tensor, {}}, rows_of_one_layout(first, slab.rows - first));
  return place(catalog, name, slab.shape, placed, type);
}

}  // namespace

Quantization::Quantization(const Catalog& catalog, Quantizer quantizer, Origin origin)
    : catalog_(catalog), quantizer_(quantizer), origin_(origin) {}

PlaneForm Quantization::form(Plane plane, std::int64_t cols) const {
  const QuantScheme scheme = quantizer_.scheme;
  if (plane == Plane::kCodes) return {plane, 1, codes_per_byte(scheme)};
  const std::int64_t block = block_cols(scheme);
  return {plane, block_rows(scheme), block == 0 ? cols : block};
}

DType Quantization::dtype(Plane plane) const {
  const QuantScheme scheme = quantizer_.scheme;
  const bool four_bits = codes_per_byte(scheme) == 2;
  if (plane == Plane::kCodes) return four_bits ? DType::kF4E2M1x2 : DType::kF8E4M3;
  if (block_scale_bytes(scheme) == 4) return DType::kF32;
  return scheme == QuantScheme::kNvfp4 ? DType::kF8E4M3 : DType::kF8E8M0;
}

PlaneType Quantization::type(Plane plane, std::int64_t cols) const {
  return {dtype(plane), origin_ == Origin::kComputed ? form(plane, cols) : PlaneForm{}};
}

Shape Quantization::shape(std::uint32_t tensor) const {
  const Box box = values(Box::whole(catalog_[tensor].shape));
  return {box.rows, box.cols};
}

Box Quantization::values(const Box& box) const {
  const std::int64_t packed = origin_ == Origin::kStored ? codes_per_byte(quantizer_.scheme) : 1;
  return {box.row, box.rows, box.col * packed, box.cols * packed};
}

TensorBox Quantization::box(Plane plane, std::uint32_t tensor, const Box& box, std::uint32_t scope,
                            const std::string& option) const {
  const Shape whole = shape(tensor);
  const QuantScheme scheme = quantizer_.scheme;
  const std::int64_t rows = unit_rows(scheme);
  const std::int64_t cols = unit_cols(scheme);
  if (!box.empty() && (cuts_unit(box.row, box.rows, whole.rows(), rows) ||
                       cuts_unit(box.col, box.cols, whole.cols(), cols))) {
    throw UsageError(fmt::format(
        "{}: {} of {} {} cut blocks of {} × {} in two, which share a scale in {}; {}", option,
        box.to_string(), catalog_[tensor].name, whole.to_string(), rows, cols, quantizer_name(quantizer_),
        origin_ == Origin::kStored ? "the checkpoint holds them so: choose another tp"
                                   : "choose another tp or another --quantize"));
  }
  if (origin_ == Origin::kComputed) return {tensor, box, scope};
  const std::uint32_t from = plane == Plane::kCodes ? tensor : companion(tensor, scales_suffix());
  const Tensor& stored = catalog_[from];
  const Box expected = form(plane, whole.cols()).of(Box::whole(whole));
  if (Box::whole(stored.shape) != expected || dtype_bytes(stored.dtype) != dtype_bytes(dtype(plane))) {
    throw InputError(fmt::format(
        "{}: is {} {}, but {} of {} {} needs {} [{}, {}]; quantise the checkpoint again", stored.name,
        dtype_name(stored.dtype), stored.shape.to_string(), quantizer_name(quantizer_), catalog_[tensor].name,
        whole.to_string(), dtype_name(dtype(plane)), expected.rows, expected.cols));
  }
  return {from, form(plane, whole.cols()).of(box), scope};
}

std::uint32_t Quantization::stored_global(std::uint32_t tensor) const {
  const std::uint32_t global = companion(tensor, global_suffix());
  const Tensor& stored = catalog_[global];
  if (stored.dtype == DType::kF32 && stored.shape.elements() == 1) return global;
  throw InputError(fmt::format("{}: is {} {}, but {} needs one float32; quantise the checkpoint again",
                               stored.name, dtype_name(stored.dtype), stored.shape.to_string(),
                               quantizer_name(quantizer_)));
}

std::uint32_t Quantization::companion(std::uint32_t tensor, const char* suffix) const {
  const std::string name = catalog_[tensor].name + suffix;
  if (const auto found = catalog_.find(name)) return *found;
  throw InputError(fmt::format("{}: has no scales beside it ({}); quantise the checkpoint again",
                               catalog_[tensor].name, name));
}

const char* Quantization::scales_suffix() const {
  return quantizer_.scheme == QuantScheme::kFp8Block ? "_scale_inv" : "_scale";
}

const char* Quantization::global_suffix() const {
  return quantizer_.scheme == QuantScheme::kNvfp4 ? "_scale_2" : "_scale";
}

Parameter global_scales(const Catalog& catalog, std::string name,
                        const std::vector<std::vector<std::uint32_t>>& groups,
                        const Quantization& quantization) {
  const auto count = static_cast<std::int64_t>(groups.size());
  if (quantization.origin() == Quantization::Origin::kStored) {
    std::vector<TensorBox> boxes;
    for (const auto& group : groups) {
      for (const std::uint32_t tensor : group)
        boxes.push_back({quantization.stored_global(tensor), {0, 1, 0, 1}});
    }
    const auto each = static_cast<std::int64_t>(groups.front().size());
    const Shape shape = count == 1 ? Shape{each} : each == 1 ? Shape{count} : Shape{count, each};
    return stack(catalog, std::move(name), shape, boxes, {DType::kF32});
  }
  Parameter global{std::move(name), DType::kF32, {count}, {}, {}};
  global.scalars.reserve(groups.size());
  for (const auto& group : groups) {
    // The first tensor stands for its scope.
    global.scalars.push_back({static_cast<std::int64_t>(global.scalars.size()) * 4,
                              *std::min_element(group.begin(), group.end())});
  }
  return global;
}

std::vector<Parameter> quantized_stack(const Catalog& catalog, const Parameter& values,
                                       const Quantization& quantization, const std::string& option) {
  if (!values.padding.empty() || values.parts.empty() || values.shape.dims() != 2) {
    throw InternalError(fmt::format("parameter {} {}, which is no matrix or has padding, cannot be quantised",
                                    values.name, values.shape.to_string()));
  }
  std::uint32_t scope = ~0u;  // the first tensor stands for it
  for (const Part& part : values.parts) scope = std::min(scope, part.tensor);
  const std::int64_t whole_cols = quantization.shape(values.parts.front().tensor).cols();
  std::vector<Parameter> parameters;
  const bool in_tiles_of_rows =
      quantization.has_scales() && codes_per_byte(quantization.quantizer().scheme) == 2;
  const auto add = [&](Plane plane, const std::string& name) {
    const PlaneForm form = quantization.form(plane, whole_cols);
    std::vector<TensorBox> boxes;
    for (const Part& part : values.parts) {
      boxes.push_back({part.tensor, quantization.values(part.box), scope});
    }
    // Codes, too: a part of them has a part of scales.
    if (in_tiles_of_rows) boxes = cut_at_tiles(boxes);
    std::int64_t rows = 0;
    const std::int64_t cols = form.of(boxes.front().box).cols;
    for (TensorBox& box : boxes) {
      // Kernels count blocks through the whole matrix, not from where a part of it begins.
      if (const std::int64_t unit = block_rows(quantization.quantizer().scheme);
          unit > 1 && &box != &boxes.back() && box.box.rows % unit != 0) {
        const bool is_stored = quantization.origin() == Quantization::Origin::kStored;
        if (box.box.rows == quantization.shape(box.tensor).rows()) {
          // It is whole: no cut is to blame.
          const std::string what = fmt::format(
              "the {} rows of {} are no multiple of the {} that share a scale in {}, and {} has more behind "
              "them, at any tp",
              box.box.rows, catalog[box.tensor].name, unit, quantizer_name(quantization.quantizer()),
              values.name);
          if (is_stored) throw InputError(what + "; quantise the checkpoint otherwise");
          throw UsageError(fmt::format("{}: {}; choose another --quantize", option, what));
        }
        throw UsageError(
            fmt::format("{}: {} of {} are no multiple of the {} rows that share a scale in {}, and {} has "
                        "more behind them; choose another tp{}",
                        option, box.box.to_string(), catalog[box.tensor].name, unit,
                        quantizer_name(quantization.quantizer()), values.name,
                        is_stored ? "" : " or another --quantize"));
      }
      rows += form.of(box.box).rows;
      box = quantization.box(plane, box.tensor, box.box, scope, option);
    }
    const PlaneType type = quantization.type(plane, whole_cols);
    parameters.push_back(plane == Plane::kScales && in_tiles_of_rows
                             ? in_tiles(catalog, name, boxes, rows, cols, type)
                             : stack(catalog, name, {rows, cols}, boxes, type));
  };
  add(Plane::kCodes, values.name);
  if (quantization.has_scales()) add(Plane::kScales, values.name + quantization.scales_suffix());
  if (quantization.has_global()) {
    std::vector<std::uint32_t> group;
    for (const Part& part : values.parts) group.push_back(part.tensor);
    parameters.push_back(
        global_scales(catalog, values.name + quantization.global_suffix(), {group}, quantization));
  }
  return parameters;
}

}  // namespace weightcast
