#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/engine.hpp"
#include "model/parameter.hpp"
#include "model/quantization.hpp"

namespace weightcast {

/// The weights of linear layers in an engine: as in the model, or quantised as its layout says. Routers,
/// norms, embedding and head never come here.
class Linears {
 public:
  /// `catalog` must outlive it. Throws UsageError when the model's weights cannot be quantised.
  Linears(const Catalog& catalog, const EngineLayout& layout);

  /// Appends what the engine keeps of a weight.
  void add(Parameter values, std::vector<Parameter>& parameters) const;

  /// Null: the weights are as in the model.
  const Quantization* quantization() const { return quantization_ ? &*quantization_ : nullptr; }

 private:
  const Catalog& catalog_;
  std::optional<Quantization> quantization_;
  std::string option_;
};

}  // namespace weightcast
