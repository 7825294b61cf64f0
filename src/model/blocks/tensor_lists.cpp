#include "model/blocks/tensor_lists.hpp"

#include <functional>
#include <numeric>
#include <utility>

namespace weightcast {

CatalogList::CatalogList(Catalog& catalog, DType dtype, StoredQuantization* stored)
    : catalog_(catalog), dtype_(dtype), stored_(stored) {}

void CatalogList::add(const std::string& name, const Shape& shape) {
  add_coded(name, dtype_, shape);
}

void CatalogList::add_float32(const std::string& name, const Shape& shape) {
  const std::uint32_t tensor = catalog_.add(name, DType::kF32, shape);
  catalog_.set_place(tensor, layer_, expert_);
  catalog_.set_reading(tensor, 0, true);
}

void CatalogList::add_coded(const std::string& name, DType dtype, const Shape& shape) {
  catalog_.set_place(catalog_.add(name, dtype, shape), layer_, expert_);
}

void CatalogList::add_linear(const std::string& module, std::int64_t out, std::int64_t in) {
  const auto first = static_cast<std::uint32_t>(catalog_.size());
  const bool values = stored_ == nullptr || stored_->keeps_values(module);
  add_weight(catalog_, module + ".weight", dtype_, out, in,
             values ? std::nullopt : std::optional(stored_->quantizer()));
  for (std::uint32_t tensor = first; tensor < catalog_.size(); ++tensor) {
    catalog_.set_place(tensor, layer_, expert_);
  }
}

void CatalogList::for_each_expert(std::int64_t experts, const std::function<void(std::int64_t)>& list) {
  for (expert_ = 0; expert_ < experts; ++expert_) list(expert_);
  expert_ = Tensor::kNone;
}

void TensorCount::add(const std::string& /*name*/, const Shape& shape) {
  const auto extents = shape.extents();
  tensors_ += 1;
  elements_ += std::accumulate(extents.begin(), extents.end(), 1.0, [](double product, std::int64_t extent) {
    return product * static_cast<double>(extent);
  });
}

void TensorCount::add_float32(const std::string& name, const Shape& shape) {
  add(name, shape);
}

void TensorCount::add_coded(const std::string& name, DType /*dtype*/, const Shape& shape) {
  add(name, shape);
}

void TensorCount::add_linear(const std::string& module, std::int64_t out, std::int64_t in) {
  add(module, {out, in});
}

void TensorCount::for_each_expert(std::int64_t experts, const std::function<void(std::int64_t)>& list) {
  TensorCount one;
  std::swap(*this, one);
  list(0);
  std::swap(*this, one);
  tensors_ += static_cast<double>(experts) * one.tensors_;
  elements_ += static_cast<double>(experts) * one.elements_;
}

}  // namespace weightcast
