#pragma once

#include "model/blocks/block.hpp"
#include "model/stored_quantization.hpp"

namespace weightcast {

/// Adds what blocks list to a catalog.
class CatalogList final : public TensorList {
 public:
  /// `catalog` and `stored` must outlive it; `stored` is null for a checkpoint of values.
  CatalogList(Catalog& catalog, DType dtype, StoredQuantization* stored);

  /// That of the tensors that follow.
  void set_layer(std::int64_t layer) { layer_ = layer; }

  void add(const std::string& name, const Shape& shape) override;
  void add_float32(const std::string& name, const Shape& shape) override;
  void add_coded(const std::string& name, DType dtype, const Shape& shape) override;
  void add_linear(const std::string& module, std::int64_t out, std::int64_t in) override;
  void for_each_expert(std::int64_t experts, const std::function<void(std::int64_t)>& list) override;

 private:
  Catalog& catalog_;
  DType dtype_;
  StoredQuantization* stored_;
  std::int64_t layer_ = Tensor::kNone;
  std::int64_t expert_ = Tensor::kNone;
};

/// Counts what blocks list, of sizes that may be any: in numbers that cannot overflow.
class TensorCount final : public TensorList {
 public:
  double tensors() const { return tensors_; }
  double elements() const { return elements_; }

  void add(const std::string& name, const Shape& shape) override;
  void add_float32(const std::string& name, const Shape& shape) override;
  void add_coded(const std::string& name, DType dtype, const Shape& shape) override;
  void add_linear(const std::string& module, std::int64_t out, std::int64_t in) override;
  void for_each_expert(std::int64_t experts, const std::function<void(std::int64_t)>& list) override;

 private:
  double tensors_ = 0;
  double elements_ = 0;
};

}  // namespace weightcast
