#include "model/sharding.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/error.hpp"
#include "core/units.hpp"

namespace weightcast {

namespace {

// The padding unit of vocabulary-parallel layers in engines of the SGLang and vLLM kind.
constexpr std::int64_t kVocabularyUnit = 64;

/// The tensor's shape with another outermost extent.
Shape with_outer(const Shape& shape, std::int64_t outer) {
  return shape.dims() == 1 ? Shape{outer} : Shape{outer, shape.cols()};
}

}  // namespace

void require_divides(const std::string& option, const std::string& what, std::int64_t parts,
                     const std::string& of, std::int64_t total) {
  if (total % parts == 0) return;
  throw UsageError(
      fmt::format("{}: {}={} does not divide {} ({}); choose a divisor", option, what, parts, of, total));
}

TensorParallel::TensorParallel(const Catalog& catalog, std::int64_t tp_size, std::int64_t tp_rank,
                               std::string option, std::string size_name)
    : catalog_(catalog),
      tp_size_(tp_size),
      tp_rank_(tp_rank),
      option_(std::move(option)),
      size_name_(std::move(size_name)) {}

TensorBox TensorParallel::outer(std::uint32_t tensor, std::int64_t start, std::int64_t count) const {
  const Shape& shape = catalog_[tensor].shape;
  if (shape.dims() == 1) return {tensor, {0, 1, start, count}};
  return {tensor, {start, count, 0, shape.cols()}};
}

Parameter TensorParallel::replicated(const std::string& name, const std::string& tensor,
                                     std::optional<DType> type) const {
  const std::uint32_t index = catalog_.at(tensor);
  const Shape& shape = catalog_[index].shape;
  const DType held = catalog_[index].dtype;
  if (type && *type != held && !(held == DType::kBF16 && *type == DType::kF32)) {
    throw InputError(fmt::format("{} is {} but engines keep it in {}, to which only bfloat16 is widened",
                                 tensor, dtype_name(held), dtype_name(*type)));
  }
  return stack(catalog_, name, shape, {{index, Box::whole(shape)}}, {type.value_or(held)});
}

Parameter TensorParallel::row_parallel(const std::string& name, const std::string& tensor) const {
  const std::uint32_t index = catalog_.at(tensor);
  const Shape& shape = catalog_[index].shape;
  require_divides(option_, size_name_, tp_size_, "the columns of " + tensor, shape.cols());
  const std::int64_t cols = shape.cols() / tp_size_;
  return stack(catalog_, name, {shape.rows(), cols}, {{index, {0, shape.rows(), tp_rank_ * cols, cols}}});
}

Parameter TensorParallel::gate_up(const std::string& name, const std::string& gate,
                                  const std::string& up) const {
  const std::uint32_t gate_index = catalog_.at(gate);
  const Shape& shape = catalog_[gate_index].shape;
  require_divides(option_, size_name_, tp_size_, "the rows of " + gate, shape[0]);
  const std::int64_t count = shape[0] / tp_size_;
  return stack(catalog_, name, with_outer(shape, 2 * count),
               {outer(gate_index, tp_rank_ * count, count), outer(catalog_.at(up), tp_rank_ * count, count)});
}

Parameter TensorParallel::gate_up(const std::string& name, const std::string& both) const {
  const std::uint32_t index = catalog_.at(both);
  const Shape& shape = catalog_[index].shape;
  const std::int64_t inner = shape[0] / 2;
  require_divides(option_, size_name_, tp_size_, "half the rows of " + both, inner);
  const std::int64_t count = inner / tp_size_;
  return stack(catalog_, name, with_outer(shape, 2 * count),
               {outer(index, tp_rank_ * count, count), outer(index, inner + tp_rank_ * count, count)});
}

Parameter TensorParallel::fused_qkv(const std::string& name, const std::string& q, const std::string& k,
                                    const std::string& v, std::int64_t heads, std::int64_t kv_heads,
                                    std::int64_t head_dim) const {
  require_divides(option_, size_name_, tp_size_, "the attention heads of " + q, heads);
  const bool replicate = tp_size_ >= kv_heads;
  if (replicate && tp_size_ % kv_heads != 0) {
    throw UsageError(
        fmt::format("{}: {}={} is no multiple of the {} kv heads of {}; a kv head cannot be shared evenly",
                    option_, size_name_, tp_size_, kv_heads, k));
  }
  if (!replicate) require_divides(option_, size_name_, tp_size_, "the kv heads of " + k, kv_heads);
  const std::int64_t q_rows = heads / tp_size_ * head_dim;
  const std::int64_t kv_rows = (replicate ? 1 : kv_heads / tp_size_) * head_dim;
  const std::int64_t kv_start = (replicate ? tp_rank_ / (tp_size_ / kv_heads) : tp_rank_) * kv_rows;
  const std::uint32_t q_index = catalog_.at(q);
  return stack(catalog_, name, with_outer(catalog_[q_index].shape, q_rows + 2 * kv_rows),
               {outer(q_index, tp_rank_ * q_rows, q_rows), outer(catalog_.at(k), kv_start, kv_rows),
                outer(catalog_.at(v), kv_start, kv_rows)});
}

Parameter TensorParallel::interleaved_qkv(const std::string& name, const std::string& q, const std::string& k,
                                          const std::string& v, std::int64_t heads, std::int64_t kv_heads,
                                          std::int64_t head_dim) const {
  const std::int64_t total = (heads + 2 * kv_heads) * head_dim;
  require_divides(option_, size_name_, tp_size_, "the attention heads of " + q, heads);
  require_divides(option_, size_name_, tp_size_, "the query, key and value rows of " + q, total);
  const std::int64_t rows = total / tp_size_;
  const std::int64_t first = tp_rank_ * rows;
  const std::int64_t q_rows = heads / kv_heads * head_dim;
  std::vector<TensorBox> boxes;
  std::int64_t at = 0;  // row of the whole matrix
  const auto take = [&](const std::string& tensor, std::int64_t row, std::int64_t count) {
    const std::int64_t begin = std::max(at, first);
    const std::int64_t end = std::min(at + count, first + rows);
    if (begin < end) boxes.push_back(outer(catalog_.at(tensor), row + begin - at, end - begin));
    at += count;
  };
  for (std::int64_t group = 0; group < kv_heads; ++group) {
    take(q, group * q_rows, q_rows);
    take(k, group * head_dim, head_dim);
    take(v, group * head_dim, head_dim);
  }
  return stack(catalog_, name, with_outer(catalog_[catalog_.at(q)].shape, rows), boxes);
}

Parameter TensorParallel::vocabulary(const std::string& name, const std::string& tensor,
                                     std::int64_t padded) const {
  const std::uint32_t index = catalog_.at(tensor);
  const Shape& shape = catalog_[index].shape;
  const std::int64_t vocabulary = shape.rows();
  if (padded == 0) padded = round_up(vocabulary, kVocabularyUnit);
  require_divides(option_, size_name_, tp_size_, "the padded vocabulary of " + tensor, padded);
  const std::int64_t rows = padded / tp_size_;
  const std::int64_t start = std::min(vocabulary, tp_rank_ * rows);
  const std::int64_t count = std::min(vocabulary, (tp_rank_ + 1) * rows) - start;
  return stack(catalog_, name, {rows, shape.cols()}, {outer(index, start, count)});
}

std::vector<Parameter> canonical_parameters(const Catalog& catalog) {
  const TensorParallel whole(catalog, 1, 0);
  std::vector<Parameter> parameters;
  parameters.reserve(catalog.size());
  for (const Tensor& tensor : catalog.tensors())
    parameters.push_back(whole.replicated(tensor.name, tensor.name));
  return parameters;
}

}  // namespace weightcast
