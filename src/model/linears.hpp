#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "model/engine.hpp"
#include "model/parameter.hpp"
#include "model/quantization.hpp"

namespace weightcast {

/// Lists a weight [out, in] of values or, quantised, its codes and behind them its scales as checkpoints name
/// them: `weight_scale_inv`, `weight_scale`, `weight_scale_2`.
void add_weight(Catalog& catalog, const std::string& name, DType dtype, std::int64_t out, std::int64_t in,
                const std::optional<Quantizer>& stored);

/// The weights of linear layers in an engine: as in the model, or quantised as its layout says. Routers,
/// norms, embedding and head never come here.
class Linears {
 public:
  /// `catalog` must outlive it; `stored` says how its codes came about. Throws UsageError for a layout that
  /// would quantise them once more.
  Linears(const Catalog& catalog, const EngineLayout& layout, const std::optional<Quantizer>& stored);

  /// Appends what the engine keeps of a weight. Throws UsageError when its values cannot be quantised.
  void add(Parameter values, std::vector<Parameter>& parameters) const;

  /// How the engine keeps weights that are in one parameter; null: as in the model, which holds values.
  /// Throws InputError naming two of which a checkpoint keeps one as values, the other as codes.
  const Quantization* quantization(std::span<const std::uint32_t> weights) const;

 private:
  const Quantization* quantization(std::uint32_t weight) const;

  const Catalog& catalog_;
  std::optional<Quantization> quantization_;
  std::string option_;
};

}  // namespace weightcast
