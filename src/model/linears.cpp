#include "model/linears.hpp"

#include <fmt/format.h>

#include <utility>

#include "core/error.hpp"

namespace weightcast {

Linears::Linears(const Catalog& catalog, const EngineLayout& layout)
    : catalog_(catalog), option_(layout.option) {
  if (layout.quantizer) quantization_.emplace(catalog, *layout.quantizer);
}

void Linears::add(Parameter values, std::vector<Parameter>& parameters) const {
  if (!quantization_) {
    parameters.push_back(std::move(values));
    return;
  }
  if (values.dtype != DType::kBF16) {
    throw UsageError(fmt::format("--quantize {}: {} is {}; only bfloat16 weights are quantised",
                                 quantizer_name(quantization_->quantizer()), values.name,
                                 dtype_name(values.dtype)));
  }
  for (Parameter& plane : quantized_stack(catalog_, values, *quantization_, option_)) {
    parameters.push_back(std::move(plane));
  }
}

}  // namespace weightcast
