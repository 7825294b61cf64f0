#pragma once

#include "model/blocks/block.hpp"

namespace weightcast {

struct PerLayerInputSizes {
  std::int64_t vocabulary = 0;
  std::int64_t hidden = 0;  ///< of the model
  std::int64_t layers = 0;
  std::int64_t width = 0;  ///< of a layer's own input
};

/// What gives each layer an input of its own, beside the embedding: `embed_tokens_per_layer`
/// [vocabulary, layers · width], `per_layer_model_projection` [layers · width, hidden] and a norm [width].
/// vLLM cuts the first two between ranks, SGLang has all whole. Trainers are not known, nor engines of
/// several stages.
class PerLayerInput final : public Block {
 public:
  explicit PerLayerInput(const PerLayerInputSizes& sizes) : sizes_(sizes) {}

  void list(const Site& site, TensorList& tensors) const override;
  /// Throws UsageError for several stages, too.
  void add_parameters(const Site& site, const EngineCut& cut,
                      std::vector<Parameter>& parameters) const override;

 private:
  PerLayerInputSizes sizes_;
};

}  // namespace weightcast
