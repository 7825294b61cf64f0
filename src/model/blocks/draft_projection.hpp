#pragma once

#include <string>

#include "model/blocks/block.hpp"

namespace weightcast {

/// What makes the input of a draft layer of the model's output and the next token's embedding
/// [hidden, 2 · hidden]. Never quantised.
class DraftProjection final : public Block {
 public:
  enum class Cut : std::uint8_t {
    kNone,    ///< every rank has it whole
    kByVllm,  ///< vLLM's ranks have rows of it each, SGLang's the whole
  };

  DraftProjection(std::string name, std::int64_t hidden, Cut cut);

  void list(const Site& site, TensorList& tensors) const override;
  /// Throws UsageError for vLLM's with a quantiser, which vLLM may quantise as well.
  void add_parameters(const Site& site, const EngineCut& cut,
                      std::vector<Parameter>& parameters) const override;

 private:
  std::string name_;
  std::int64_t hidden_;
  Cut cut_;
};

}  // namespace weightcast
