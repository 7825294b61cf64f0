#include "engine/loader.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/error.hpp"

namespace weightcast::engine {

Tensor Loader::tensor(const std::string& name, const Shape& shape) {
  Tensor tensor = source_.read(name);
  if (tensor.shape != shape) {
    throw InputError(fmt::format("parameter {} has shape {}, the layout asks for {}", name,
                                 tensor.shape.to_string(), shape.to_string()));
  }
  read_.insert(name);
  return tensor;
}

std::vector<float> Loader::vector(const std::string& name, std::int64_t size) {
  return std::move(tensor(name, Shape{size}).values);
}

Matrix Loader::matrix(const std::string& name, std::int64_t rows, std::int64_t cols) {
  Matrix result;
  result.rows = rows;
  result.cols = cols;
  result.values = std::move(tensor(name, Shape{rows, cols}).values);
  return result;
}

Linear Loader::linear(const std::string& module, std::int64_t out, std::int64_t in, bool bias) {
  Linear result;
  result.weight = matrix(module + ".weight", out, in);
  if (bias) result.bias = vector(module + ".bias", out);
  return result;
}

std::vector<float> Loader::norm(const std::string& name, std::int64_t size) {
  std::vector<float> weight = vector(name, size);
  if (!norms_add_one_) return weight;
  for (float& value : weight) value += 1.0F;
  return weight;
}

void Loader::expect_all_read() const {
  for (const std::string& name : source_.names()) {
    if (!read_.contains(name)) throw InputError(fmt::format("parameter {} is not part of the model", name));
  }
}

Matrix cut_rows(const Tensor& tensor, std::int64_t first, std::int64_t rows, std::int64_t cols) {
  Matrix result(rows, cols);
  std::copy_n(tensor.values.begin() + first * cols, rows * cols, result.values.begin());
  return result;
}

}  // namespace weightcast::engine
