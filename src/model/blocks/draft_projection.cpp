#include "model/blocks/draft_projection.hpp"

#include <fmt/format.h>

#include <utility>

#include "core/error.hpp"

namespace weightcast {

DraftProjection::DraftProjection(std::string name, std::int64_t hidden, Cut cut)
    : name_(std::move(name)), hidden_(hidden), cut_(cut) {}

void DraftProjection::list(const Site& site, TensorList& tensors) const {
  tensors.add(site.canonical + name_, {hidden_, 2 * hidden_});
}

void DraftProjection::add_parameters(const Site& site, const EngineCut& cut,
                                     std::vector<Parameter>& parameters) const {
  const std::string name = site.engine + name_;
  const std::string tensor = site.canonical + name_;
  if (cut_ == Cut::kNone || cut.layout.engine != Engine::kVllm) {
    parameters.push_back(cut.dense.replicated(name, tensor));
    return;
  }
  if (cut.layout.quantizer) {
    throw UsageError(
        fmt::format("--quantize {}: whether vLLM quantises {} is not known; leave --quantize out, or "
                    "the draft layers",
                    quantizer_name(*cut.layout.quantizer), tensor));
  }
  parameters.push_back(cut.dense.column_parallel(name, tensor, hidden_, "rows"));
}

}  // namespace weightcast
