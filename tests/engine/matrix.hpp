#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace weightcast::engine {

/// A row-major matrix.
struct Matrix {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::vector<float> values;

  Matrix() = default;
  Matrix(std::int64_t row_count, std::int64_t col_count)
      : rows(row_count), cols(col_count), values(static_cast<std::size_t>(row_count * col_count)) {}

  std::span<float> row(std::int64_t index) {
    return std::span(values).subspan(static_cast<std::size_t>(index * cols), static_cast<std::size_t>(cols));
  }
  std::span<const float> row(std::int64_t index) const {
    return std::span(values).subspan(static_cast<std::size_t>(index * cols), static_cast<std::size_t>(cols));
  }
};

float dot(std::span<const float> a, std::span<const float> b);
float sigmoid(float x);
float silu(float x);

/// `weight` [out, in] times a row [in].
std::vector<float> multiply(const Matrix& weight, std::span<const float> row);

/// The same of each row of `input` [tokens, in].
Matrix multiply(const Matrix& weight, const Matrix& input);

/// Columns [first, first + count).
Matrix columns(const Matrix& matrix, std::int64_t first, std::int64_t count);

void add(std::span<const float> values, std::span<float> to);

/// Adds `values`, unless there are none, to each row.
void add_to_rows(const std::vector<float>& values, Matrix& to);

/// `from`, scaled to a root mean square of 1, times `weight`. Both spans may be the same.
void normalize_to_rms(std::span<const float> from, const std::vector<float>& weight, double epsilon,
                      std::span<float> to);

/// The same of each row.
Matrix normalize_to_rms(const Matrix& input, const std::vector<float>& weight, double epsilon);

void softmax(std::span<float> values);

/// Indices of the `count` greatest values, the greatest first.
std::vector<std::size_t> greatest_indices(std::span<const float> values, std::int64_t count);

}  // namespace weightcast::engine
