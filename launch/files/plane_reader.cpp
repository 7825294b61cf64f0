#include "launch/files/plane_reader.hpp"

#include <algorithm>

#include "launch/files/tensor_copy.hpp"
#include "model/quantization.hpp"

namespace weightcast {

namespace {

constexpr std::int64_t kValueBytes = 2;

}  // namespace

PlaneReader::PlaneReader(const Catalog& catalog, BoundReader& source, std::optional<Quantizer> quantizer)
    : catalog_(catalog), source_(source), quantizer_(quantizer) {}

void PlaneReader::add(const std::vector<Parameter>& parameters) {
  if (!quantizer_ || !has_global(quantizer_->scheme)) return;
  for (const Parameter& parameter : parameters) {
    for (const Part& part : parameter.parts) {
      if (part.form.plane == Plane::kValues) continue;
      std::vector<std::uint32_t>& members = members_[part.scope];
      if (std::find(members.begin(), members.end(), part.tensor) == members.end())
        members.push_back(part.tensor);
    }
  }
}

void PlaneReader::read(const Part& part, const Box& piece, std::int64_t element_bytes, std::byte* to) {
  if (part.negated_exp) return read_negated_exp(part.tensor, piece, to);
  if (part.form.plane == Plane::kValues) return read_values(part.tensor, piece, element_bytes, to);
  // The values that these elements stand for, in whole blocks; a whole row where that has one scale.
  const Shape& shape = catalog_[part.tensor].shape;
  const PlaneForm& form = part.form;
  const std::int64_t block = unit_rows(quantizer_->scheme);
  Box box{piece.row * form.block_rows, piece.rows * form.block_rows, piece.col * form.block_cols,
          piece.cols * form.block_cols};
  const std::int64_t first = box.row / block * block;
  const std::int64_t end = std::min(shape.rows(), (box.row + box.rows + block - 1) / block * block);
  box = {first, end - first, 0, shape.cols()};
  values_.resize(static_cast<std::size_t>(box.area() * kValueBytes));
  source_.read(part.tensor, box, values_.data());

  QuantMove move;
  move.quantizer = *quantizer_;
  move.rows = box.rows;
  move.cols = box.cols;
  move.values = {Space::kStaging, 0, 0, box.cols * kValueBytes};
  const bool codes = part.form.plane == Plane::kCodes;
  const Quantization how(catalog_, *quantizer_);
  move.codes_box = how.form(Plane::kCodes, shape.cols()).of(box);
  if (how.has_scales()) {
    const PlaneForm of_scales = codes ? how.form(Plane::kScales, shape.cols()) : form;
    move.scale_bytes = codes ? block_scale_bytes(quantizer_->scheme) : element_bytes;
    move.scale_rows = of_scales.block_rows;
    move.scale_cols = of_scales.block_cols;
    move.scales_box = of_scales.of(box);
  }
  std::vector<GlobalScale> scales;
  if (has_global(quantizer_->scheme)) {
    scales.push_back(scale_of(part.scope));
    move.scope = 0;
  }
  // All of the whole rows, then the piece of them.
  const Box& made = codes ? move.codes_box : move.scales_box;
  const std::int64_t bytes = codes ? 1 : element_bytes;
  std::vector<std::byte> plane(static_cast<std::size_t>(made.area() * bytes));
  (codes ? move.codes : move.scales) = {Space::kParameter, 0, 0, made.cols * bytes};
  std::byte* const out = plane.data();
  executor_->quantize({&move, 1}, {{}, values_.data(), {&out, 1}}, scales, {});
  for (std::int64_t row = 0; row < piece.rows; ++row) {
    const std::byte* from = out + ((piece.row + row - made.row) * made.cols + piece.col - made.col) * bytes;
    std::copy_n(from, piece.cols * bytes, to + row * piece.cols * bytes);
  }
}

void PlaneReader::read_values(std::uint32_t tensor, const Box& piece, std::int64_t element_bytes,
                              std::byte* to) {
  const DType held = catalog_[tensor].dtype;
  if (held != DType::kBF16 || element_bytes == dtype_bytes(held)) return source_.read(tensor, piece, to);
  const std::int64_t row_bytes = piece.area() * dtype_bytes(held);
  values_.resize(static_cast<std::size_t>(row_bytes));
  source_.read(tensor, piece, values_.data());
  const Move widen{0, 0, 0, 1, row_bytes, 0, MoveOp::kBF16ToF32};
  executor_->unpack({&widen, 1}, values_.data(), {&to, 1});
}

void PlaneReader::read_negated_exp(std::uint32_t tensor, const Box& piece, std::byte* to) {
  const std::int64_t bytes = piece.area() * dtype_bytes(DType::kF32);
  values_.resize(static_cast<std::size_t>(bytes));
  source_.read(tensor, piece, values_.data());
  const Move move{0, 0, 0, 1, bytes, 0, MoveOp::kNegatedExp};
  executor_->unpack({&move, 1}, values_.data(), {&to, 1});
}

const GlobalScale& PlaneReader::scale_of(std::uint32_t scope) {
  if (const auto found = scales_.find(scope); found != scales_.end()) return found->second;
  std::vector<float> largest(1, 0);
  std::vector<std::byte> values;
  for (const std::uint32_t tensor : members_.at(scope)) {
    const Shape& shape = catalog_[tensor].shape;
    for_each_box(shape, kValueBytes, [&](const Box& box) {
      values.resize(static_cast<std::size_t>(box.area() * kValueBytes));
      source_.read(tensor, box, values.data());
      QuantMove move;
      move.quantizer = *quantizer_;
      move.rows = box.rows;
      move.cols = box.cols;
      move.values = {Space::kStaging, 0, 0, box.cols * kValueBytes};
      move.scope = 0;
      executor_->find_largest({&move, 1}, {{}, values.data()}, largest);
    });
  }
  return scales_.emplace(scope, global_scale(*quantizer_, largest.front())).first->second;
}

}  // namespace weightcast
