#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

namespace weightcast {

/// The extents of a tensor, outermost first. At most five dimensions (those of a convolution over time and
/// space), held without allocation because a catalog has tens of thousands of them. A scalar has no dimension
/// and one element.
class Shape {
 public:
  static constexpr std::size_t kMaxDims = 5;

  Shape() = default;
  Shape(std::initializer_list<std::int64_t> extents);
  explicit Shape(std::span<const std::int64_t> extents);

  std::span<const std::int64_t> extents() const { return {extents_.data(), dims_}; }
  std::size_t dims() const { return dims_; }
  std::int64_t operator[](std::size_t dim) const { return extents_.at(dim); }
  std::int64_t elements() const;

  /// Every tensor is also a matrix: all dimensions but the last are rows, the last is columns. A vector is
  /// one row; a scalar is 1 × 1.
  std::int64_t rows() const { return cols() == 0 ? 0 : elements() / cols(); }
  std::int64_t cols() const { return dims_ == 0 ? 1 : extents_.at(dims_ - 1); }

  /// `[128, 2048]`
  std::string to_string() const;

  friend bool operator==(const Shape& a, const Shape& b) = default;

 private:
  std::array<std::int64_t, kMaxDims> extents_{};
  std::size_t dims_ = 0;
};

/// A rectangle of a tensor's matrix view: rows [row, row + rows) × columns [col, col + cols), in elements.
struct Box {
  std::int64_t row = 0;
  std::int64_t rows = 0;
  std::int64_t col = 0;
  std::int64_t cols = 0;

  static Box whole(const Shape& shape) { return {0, shape.rows(), 0, shape.cols()}; }

  std::int64_t area() const { return rows * cols; }
  bool empty() const { return rows <= 0 || cols <= 0; }
  bool contains(const Box& other) const;
  Box intersect(const Box& other) const;

  /// `rows 0..128, columns 0..2048`
  std::string to_string() const;

  friend auto operator<=>(const Box& a, const Box& b) = default;
};

}  // namespace weightcast
