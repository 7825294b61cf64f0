#include "model/catalog.hpp"

#include <fmt/format.h>

#include <numeric>

#include "core/error.hpp"
#include "core/hash.hpp"

namespace weightcast {

void require_plausible(const std::string& sizes, double tensors, double bytes) {
  // Ten times what the largest models have, and 500 times. Sums over ranks stay far below 2^63.
  constexpr double kMostTensors = 1e6;
  constexpr double kMostBytes = 1e15;
  if (tensors <= kMostTensors && bytes <= kMostBytes) return;
  throw InputError(
      fmt::format("{} make {:.3g} tensors of {:.3g} bytes; no model has more than {:g} of {:g}: correct what "
                  "is wrong",
                  sizes, tensors, bytes, kMostTensors, kMostBytes));
}

std::uint32_t Catalog::add(std::string name, DType dtype, Shape shape) {
  const auto index = static_cast<std::uint32_t>(tensors_.size());
  if (!index_.emplace(name, index).second) {
    throw InternalError(fmt::format("the catalog lists tensor {} twice", name));
  }
  tensors_.push_back({std::move(name), dtype, shape});
  return index;
}

void Catalog::set_place(std::uint32_t index, std::int64_t layer, std::int64_t expert) {
  Tensor& tensor = tensors_.at(index);
  tensor.layer = layer;
  tensor.expert = expert;
}

void Catalog::set_reading(std::uint32_t index, std::int64_t unread, bool widened) {
  Tensor& tensor = tensors_.at(index);
  tensor.unread = unread;
  tensor.widened = widened;
}

std::optional<std::uint32_t> Catalog::find(std::string_view name) const {
  const auto found = index_.find(name);
  if (found == index_.end()) return std::nullopt;
  return found->second;
}

std::uint32_t Catalog::at(std::string_view name) const {
  const auto found = find(name);
  if (!found) throw InternalError(fmt::format("tensor {} is not in the catalog", name));
  return *found;
}

std::int64_t Catalog::bytes() const {
  return std::accumulate(tensors_.begin(), tensors_.end(), std::int64_t{0},
                         [](std::int64_t sum, const Tensor& tensor) { return sum + tensor.bytes(); });
}

std::string Catalog::hash_of_names() const {
  Hasher hasher;
  for (const Tensor& tensor : tensors_) hasher.add(std::string_view(tensor.name));
  return fmt::format("{:016x}", hasher.digest());
}

}  // namespace weightcast
