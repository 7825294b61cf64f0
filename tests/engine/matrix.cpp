#include "engine/matrix.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace weightcast::engine {

float dot(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * double{b[i]};
  return static_cast<float>(sum);
}

float sigmoid(float x) {
  return 1.0F / (1.0F + std::exp(-x));
}

float silu(float x) {
  return x / (1.0F + std::exp(-x));
}

std::vector<float> multiply(const Matrix& weight, std::span<const float> row) {
  std::vector<float> result;
  for (std::int64_t out = 0; out < weight.rows; ++out) result.push_back(dot(row, weight.row(out)));
  return result;
}

Matrix multiply(const Matrix& weight, const Matrix& input) {
  Matrix result(input.rows, weight.rows);
  for (std::int64_t token = 0; token < input.rows; ++token) {
    std::ranges::copy(multiply(weight, input.row(token)), result.row(token).begin());
  }
  return result;
}

Matrix columns(const Matrix& matrix, std::int64_t first, std::int64_t count) {
  Matrix result(matrix.rows, count);
  for (std::int64_t row = 0; row < matrix.rows; ++row) {
    const auto from =
        matrix.row(row).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
    std::ranges::copy(from, result.row(row).begin());
  }
  return result;
}

void add(std::span<const float> values, std::span<float> to) {
  for (std::size_t i = 0; i < to.size(); ++i) to[i] += values[i];
}

void add_to_rows(const std::vector<float>& values, Matrix& to) {
  if (values.empty()) return;
  for (std::int64_t row = 0; row < to.rows; ++row) add(values, to.row(row));
}

void normalize_to_rms(std::span<const float> from, const std::vector<float>& weight, double epsilon,
                      std::span<float> to) {
  const double mean_square = double{dot(from, from)} / static_cast<double>(from.size());
  const auto scale = static_cast<float>(1.0 / std::sqrt(mean_square + epsilon));
  for (std::size_t i = 0; i < from.size(); ++i) to[i] = weight[i] * (from[i] * scale);
}

Matrix normalize_to_rms(const Matrix& input, const std::vector<float>& weight, double epsilon) {
  Matrix result(input.rows, input.cols);
  for (std::int64_t row = 0; row < input.rows; ++row) {
    normalize_to_rms(input.row(row), weight, epsilon, result.row(row));
  }
  return result;
}

void softmax(std::span<float> values) {
  const float greatest = *std::ranges::max_element(values);
  float sum = 0;
  for (float& value : values) {
    value = std::exp(value - greatest);
    sum += value;
  }
  for (float& value : values) value /= sum;
}

std::vector<std::size_t> greatest_indices(std::span<const float> values, std::int64_t count) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) { return values[a] > values[b]; });
  order.resize(static_cast<std::size_t>(count));
  return order;
}

}  // namespace weightcast::engine
