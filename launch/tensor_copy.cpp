#include "launch/tensor_copy.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.hpp"

namespace weightcast {

std::unique_ptr<TensorFileWriter> create_checkpoint(const Options& options, std::int64_t weight_version,
                                                    const std::string& config_text,
                                                    const std::vector<DatasetSpec>& tensors) {
  if (options.output.empty()) {
    throw UsageError("--output PATH is needed: a directory for safetensors, or a file ending in .h5");
  }
  if (options.output.ends_with(".h5") || options.output.ends_with(".hdf5")) {
    return create_hdf5(
        options.output,
        {{"kind", std::string("checkpoint")}, {"weight_version", weight_version}, {"config", config_text}},
        tensors);
  }
  if (options.output.ends_with(".safetensors")) {
    throw UsageError(fmt::format(
        "--output {}: safetensors are written into a directory; name that, or a file ending in .h5",
        options.output));
  }
  return create_safetensors(options.output, config_text, tensors, options.max_file_size, weight_version);
}

std::unique_ptr<TensorFileWriter> create_checkpoint(const Options& options, std::int64_t weight_version,
                                                    const std::string& config_text, const Catalog& catalog) {
  std::vector<DatasetSpec> specs;
  specs.reserve(catalog.size());
  for (const Tensor& tensor : catalog.tensors()) specs.push_back({tensor.name, tensor.dtype, tensor.shape});
  return create_checkpoint(options, weight_version, config_text, specs);
}

void copy_matrix(TensorFileWriter& to, std::size_t index, std::int64_t offset, const Shape& shape,
                 std::int64_t element_bytes, Progress& progress,
                 const std::function<void(const Box&, std::span<std::byte>)>& read) {
  std::vector<std::byte> piece(
      static_cast<std::size_t>(std::min(kCopyBytes, shape.elements() * element_bytes)));
  for_each_box(shape, element_bytes, [&](const Box& box) {
    const auto bytes = std::span(piece).first(static_cast<std::size_t>(box.area() * element_bytes));
    read(box, bytes);
    to.write(index, offset + (box.row * shape.cols() + box.col) * element_bytes, bytes);
    progress.advance(static_cast<std::int64_t>(bytes.size()));
  });
}

void for_each_box(const Shape& shape, std::int64_t element_bytes,
                  const std::function<void(const Box&)>& visit) {
  const std::int64_t elements = kCopyBytes / element_bytes;
  const std::int64_t cols = std::min(shape.cols(), elements);
  const std::int64_t rows = std::max<std::int64_t>(1, elements / std::max<std::int64_t>(1, shape.cols()));
  for (std::int64_t row = 0; row < shape.rows(); row += rows) {
    for (std::int64_t col = 0; col < shape.cols(); col += cols) {
      visit({row, std::min(rows, shape.rows() - row), col, std::min(cols, shape.cols() - col)});
    }
  }
}

}  // namespace weightcast
