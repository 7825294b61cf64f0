#include "model/sharding.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <span>
#include <utility>

#include "core/error.hpp"
#include "core/units.hpp"

namespace weightcast {

namespace {

// The padding unit of vocabulary-parallel layers in engines of the SGLang and vLLM kind.
constexpr std::int64_t kVocabularyUnit = 64;

/// The tensor's shape with another outermost extent.
Shape with_outer(const Shape& shape, std::int64_t outer) {
  std::array<std::int64_t, Shape::kMaxDims> extents{};
  std::copy(shape.extents().begin(), shape.extents().end(), extents.begin());
  extents[0] = outer;
  return Shape(std::span<const std::int64_t>(extents).first(shape.dims()));
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
  const bool widens = held == DType::kBF16 && type == DType::kF32;
  if (type && *type != held && !widens) {
    throw InputError(fmt::format(
        "{} is {} but engines keep it in {}, to which only bfloat16 is widened; have the weights in that",
        tensor, dtype_name(held), dtype_name(*type)));
  }
  return stack(catalog_, name, shape, {{index, Box::whole(shape)}}, {type.value_or(held)});
}

Parameter TensorParallel::stacked(const std::string& name, const std::vector<std::string>& tensors) const {
  std::vector<TensorBox> boxes;
  std::int64_t rows = 0;
  for (const std::string& tensor : tensors) {
    const std::uint32_t index = catalog_.at(tensor);
    boxes.push_back({index, Box::whole(catalog_[index].shape)});
    rows += catalog_[index].shape[0];
  }
  return stack(catalog_, name, with_outer(catalog_[boxes.front().tensor].shape, rows), boxes);
}

Parameter TensorParallel::sections(const std::string& name, const std::vector<Section>& sections) const {
  std::vector<TensorBox> boxes;
  std::int64_t total = 0;
  for (const auto& [tensor, first, all, whole] : sections) {
    if (!whole) require_divides(option_, size_name_, tp_size_, "the rows of " + tensor, all);
    const std::int64_t count = whole ? all : all / tp_size_;
    boxes.push_back(outer(catalog_.at(tensor), whole ? first : first + tp_rank_ * count, count));
    total += count;
  }
  return stack(catalog_, name, with_outer(catalog_[boxes.front().tensor].shape, total), boxes);
}

Parameter TensorParallel::of_heads(const std::string& name, const std::string& tensor, std::int64_t heads,
                                   std::int64_t head_dim) const {
  const auto [first, count] = rank_heads(tensor, heads);
  return stack(catalog_, name, {count * head_dim},
               {outer(catalog_.at(tensor), first * head_dim, count * head_dim)});
}

TensorParallel::Heads TensorParallel::rank_heads(const std::string& of, std::int64_t heads) const {
  if (tp_size_ < heads) {
    require_divides(option_, size_name_, tp_size_, "the kv heads of " + of, heads);
    return {tp_rank_ * (heads / tp_size_), heads / tp_size_};
  }
  if (tp_size_ % heads != 0) {
    throw UsageError(
        fmt::format("{}: {}={} is no multiple of the {} kv heads of {}; a kv head cannot be shared evenly",
                    option_, size_name_, tp_size_, heads, of));
  }
  return {tp_rank_ / (tp_size_ / heads), 1};
}

Parameter TensorParallel::column_parallel(const std::string& name, const std::string& tensor,
                                          std::int64_t units, const std::string& unit_name) const {
  const std::uint32_t index = catalog_.at(tensor);
  const Shape& shape = catalog_[index].shape;
  require_divides(option_, size_name_, tp_size_, fmt::format("the {} of {}", unit_name, tensor), units);
  const std::int64_t count = shape[0] / tp_size_;
  return stack(catalog_, name, with_outer(shape, count), {outer(index, tp_rank_ * count, count)});
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
  const std::int64_t inner = catalog_[catalog_.at(gate)].shape[0];
  return sections(name, {{gate, 0, inner}, {up, 0, inner}});
}

Parameter TensorParallel::gate_up(const std::string& name, const std::string& both) const {
  const std::int64_t inner = catalog_[catalog_.at(both)].shape[0] / 2;
  return sections(name, {{both, 0, inner}, {both, inner, inner}});
}

Parameter TensorParallel::fused_qkv(const std::string& name, const std::string& q, const std::string& k,
                                    const std::string& v, std::int64_t heads, std::int64_t kv_heads,
                                    std::int64_t head_dim) const {
  require_divides(option_, size_name_, tp_size_, "the attention heads of " + q, heads);
  const auto [first, count] = rank_heads(k, kv_heads);
  const std::int64_t q_rows = catalog_[catalog_.at(q)].shape[0] / tp_size_;
  const std::int64_t kv_rows = count * head_dim;
  const std::int64_t kv_start = first * head_dim;
  const std::uint32_t q_index = catalog_.at(q);
  return stack(catalog_, name, with_outer(catalog_[q_index].shape, q_rows + 2 * kv_rows),
               {outer(q_index, tp_rank_ * q_rows, q_rows), outer(catalog_.at(k), kv_start, kv_rows),
                outer(catalog_.at(v), kv_start, kv_rows)});
}

Parameter TensorParallel::interleaved_qkv(const std::string& name, const std::string& q, const std::string& k,
                                          const std::string& v, std::int64_t heads, std::int64_t kv_heads,
                                          std::int64_t head_dim, bool gated) const {
  const std::int64_t q_total = catalog_[catalog_.at(q)].shape[0];  // with gates, where there are some
  const std::int64_t total = q_total + 2 * kv_heads * head_dim;
  require_divides(option_, size_name_, tp_size_, "the attention heads of " + q, heads);
  require_divides(option_, size_name_, tp_size_, "the query, key and value rows of " + q, total);
  const std::int64_t rows = total / tp_size_;
  const std::int64_t first = tp_rank_ * rows;
  std::vector<TensorBox> boxes;
  std::int64_t at = 0;  // row of the whole matrix
  const auto take = [&](const std::string& tensor, std::int64_t row, std::int64_t count) {
    const std::int64_t begin = std::max(at, first);
    const std::int64_t end = std::min(at + count, first + rows);
    if (begin < end) boxes.push_back(outer(catalog_.at(tensor), row + begin - at, end - begin));
    at += count;
  };
  const std::int64_t group_heads = heads / kv_heads;
  const std::int64_t q_rows = q_total / kv_heads;
  for (std::int64_t group = 0; group < kv_heads; ++group) {
    if (gated) {
      for (const std::int64_t half : {0, 1}) {
        for (std::int64_t head = group * group_heads; head < (group + 1) * group_heads; ++head) {
          take(q, (2 * head + half) * head_dim, head_dim);
        }
      }
    } else {
      take(q, group * q_rows, q_rows);
    }
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
