#include "model/linears.hpp"

#include <fmt/format.h>

#include <utility>

#include "core/error.hpp"

namespace weightcast {

void add_weight(Catalog& catalog, const std::string& name, DType dtype, std::int64_t out, std::int64_t in,
                const std::optional<Quantizer>& stored) {
  if (!stored) {
    catalog.add(name, dtype, {out, in});
    return;
  }
  const Quantization quantization(catalog, *stored, Quantization::Origin::kStored);
  catalog.add(name, quantization.dtype(Plane::kCodes), {out, in / codes_per_byte(stored->scheme)});
  if (quantization.has_scales()) {
    const Box scales = quantization.form(Plane::kScales, in).of({0, out, 0, in});
    catalog.add(name + quantization.scales_suffix(), quantization.dtype(Plane::kScales),
                {scales.rows, scales.cols});
  }
  if (quantization.has_global()) catalog.add(name + quantization.global_suffix(), DType::kF32, Shape{});
}

Linears::Linears(const Catalog& catalog, const EngineLayout& layout, const std::optional<Quantizer>& stored)
    : catalog_(catalog), option_(layout.option) {
  if (stored && layout.quantizer) {
    throw UsageError(fmt::format("--quantize {}: the model is already quantised ({}); leave the option out",
                                 quantizer_name(*layout.quantizer), quantizer_name(*stored)));
  }
  if (stored) {
    quantization_.emplace(catalog, *stored, Quantization::Origin::kStored);
  } else if (layout.quantizer) {
    quantization_.emplace(catalog, *layout.quantizer);
  }
}

const Quantization* Linears::quantization(std::span<const std::uint32_t> weights) const {
  const Quantization* const first = quantization(weights.front());
  for (const std::uint32_t weight : weights) {
    if (quantization(weight) == first) continue;
    throw InputError(
        fmt::format("{} is {} but {} is {}, and the engine keeps both in one parameter; quantise both or "
                    "neither",
                    catalog_[weights.front()].name, dtype_name(catalog_[weights.front()].dtype),
                    catalog_[weight].name, dtype_name(catalog_[weight].dtype)));
  }
  return first;
}

const Quantization* Linears::quantization(std::uint32_t weight) const {
  if (!quantization_) return nullptr;
  const bool stored = quantization_->origin() == Quantization::Origin::kStored;
  // A quantised checkpoint may keep the values of some modules.
  if (stored && catalog_[weight].dtype != quantization_->dtype(Plane::kCodes)) return nullptr;
  if (!stored && catalog_[weight].dtype != DType::kBF16) {
    throw UsageError(fmt::format("--quantize {}: {} is {}; only bfloat16 weights are quantised",
                                 quantizer_name(quantization_->quantizer()), catalog_[weight].name,
                                 dtype_name(catalog_[weight].dtype)));
  }
  return &*quantization_;
}

void Linears::add(Parameter values, std::vector<Parameter>& parameters) const {
  std::vector<std::uint32_t> weights;
  for (const Part& part : values.parts) weights.push_back(part.tensor);
  const Quantization* const how = quantization(weights);
  if (how == nullptr) {
    parameters.push_back(std::move(values));
    return;
  }
  for (Parameter& plane : quantized_stack(catalog_, values, *how, option_)) {
    parameters.push_back(std::move(plane));
  }
}

}  // namespace weightcast
