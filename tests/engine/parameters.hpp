#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/shape.hpp"

namespace weightcast::engine {

/// A parameter's values, widened to float32, row-major.
struct Tensor {
  Shape shape;
  std::vector<float> values;
};

/// Where one rank's parameters come from: a shard file, or a test's memory.
class ParameterSource {
 public:
  virtual ~ParameterSource() = default;

  /// The names of all parameters, sorted.
  virtual std::vector<std::string> names() const = 0;

  /// Throws InputError naming the parameter when there is none of that name.
  virtual Tensor read(const std::string& name) const = 0;
};

/// Parameters in memory.
class MemorySource : public ParameterSource {
 public:
  explicit MemorySource(std::map<std::string, Tensor> tensors) : tensors_(std::move(tensors)) {}

  std::vector<std::string> names() const override;
  Tensor read(const std::string& name) const override;

  std::map<std::string, Tensor>& tensors() { return tensors_; }

 private:
  std::map<std::string, Tensor> tensors_;
};

}  // namespace weightcast::engine
