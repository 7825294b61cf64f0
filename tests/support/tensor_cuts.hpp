// Parts of tensors, as trainers hold them, and tensors of parts.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "support/safetensors_file.hpp"

namespace weightcast::test_support {

/// Rows of a matrix, or elements of a vector.
inline SafetensorsFile::Tensor rows(const SafetensorsFile::Tensor& whole, std::int64_t first,
                                    std::int64_t count) {
  const std::size_t row_bytes = whole.data.size() / static_cast<std::size_t>(whole.shape.at(0));
  SafetensorsFile::Tensor part{whole.dtype, whole.shape,
                               whole.data.substr(static_cast<std::size_t>(first) * row_bytes,
                                                 static_cast<std::size_t>(count) * row_bytes)};
  part.shape.at(0) = count;
  return part;
}

/// Columns of a matrix.
inline SafetensorsFile::Tensor columns(const SafetensorsFile::Tensor& whole, std::int64_t first,
                                       std::int64_t count) {
  const std::int64_t height = whole.shape.at(0);
  const std::int64_t width = whole.shape.at(1);
  const std::size_t element = whole.data.size() / static_cast<std::size_t>(height * width);
  SafetensorsFile::Tensor part{whole.dtype, {height, count}, ""};
  for (std::int64_t row = 0; row < height; ++row) {
    part.data += whole.data.substr(static_cast<std::size_t>(row * width + first) * element,
                                   static_cast<std::size_t>(count) * element);
  }
  return part;
}

/// The rows of all, one tensor's above the next one's.
inline SafetensorsFile::Tensor stacked(const std::vector<SafetensorsFile::Tensor>& parts) {
  SafetensorsFile::Tensor whole = parts.front();
  for (std::size_t i = 1; i < parts.size(); ++i) {
    whole.shape.at(0) += parts[i].shape.at(0);
    whole.data += parts[i].data;
  }
  return whole;
}

}  // namespace weightcast::test_support
