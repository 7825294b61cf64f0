#include "core/shape.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "core/error.hpp"

namespace weightcast {

Shape::Shape(std::initializer_list<std::int64_t> extents)
    : Shape(std::span<const std::int64_t>(extents.begin(), extents.size())) {}

Shape::Shape(std::span<const std::int64_t> extents) : dims_(extents.size()) {
  if (dims_ > kMaxDims) {
    throw InputError(fmt::format("a tensor of {} dimensions; at most {} are supported", dims_, kMaxDims));
  }
  std::copy(extents.begin(), extents.end(), extents_.begin());
}

std::int64_t Shape::elements() const {
  const auto all = extents();
  return std::accumulate(all.begin(), all.end(), std::int64_t{1}, std::multiplies<>());
}

std::string Shape::to_string() const {
  return fmt::format("[{}]", fmt::join(extents(), ", "));
}

bool Box::contains(const Box& other) const {
  return other.row >= row && other.row + other.rows <= row + rows && other.col >= col &&
         other.col + other.cols <= col + cols;
}

Box Box::intersect(const Box& other) const {
  const std::int64_t row0 = std::max(row, other.row);
  const std::int64_t col0 = std::max(col, other.col);
  return {row0, std::max<std::int64_t>(0, std::min(row + rows, other.row + other.rows) - row0), col0,
          std::max<std::int64_t>(0, std::min(col + cols, other.col + other.cols) - col0)};
}

std::string Box::to_string() const {
  return fmt::format("rows {}..{}, columns {}..{}", row, row + rows, col, col + cols);
}

}  // namespace weightcast
