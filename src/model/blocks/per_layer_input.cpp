#include "model/blocks/per_layer_input.hpp"

#include <fmt/format.h>

#include "core/error.hpp"

namespace weightcast {

namespace {

constexpr const char* kEmbedding = "model.embed_tokens_per_layer.weight";
constexpr const char* kProjection = "model.per_layer_model_projection.weight";
constexpr const char* kNorm = "model.per_layer_projection_norm.weight";

}  // namespace

void PerLayerInput::list(const Site& /*site*/, TensorList& tensors) const {
  const std::int64_t all = sizes_.layers * sizes_.width;
  tensors.add(kEmbedding, {sizes_.vocabulary, all});
  tensors.add(kProjection, {all, sizes_.hidden});
  tensors.add(kNorm, {sizes_.width});
}

void PerLayerInput::add_parameters(const Site& /*site*/, const EngineCut& cut,
                                   std::vector<Parameter>& parameters) const {
  if (cut.layout.pp > 1) {
    throw UsageError(fmt::format("{}: pp={}: where engines of several stages have {} is not known; use tp",
                                 cut.layout.option, cut.layout.pp, kEmbedding));
  }
  const bool whole = cut.layout.engine == Engine::kSglang;
  const TensorParallel& ranks = cut.embedding;
  parameters.push_back(whole ? ranks.replicated(kEmbedding, kEmbedding)
                             : ranks.vocabulary(kEmbedding, kEmbedding));
  parameters.push_back(whole ? ranks.replicated(kProjection, kProjection)
                             : ranks.sections(kProjection, {{kProjection, 0, sizes_.layers * sizes_.width}}));
  parameters.push_back(ranks.replicated(kNorm, kNorm));
}

}  // namespace weightcast
