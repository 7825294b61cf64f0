#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "model/families/common.hpp"

namespace weightcast {

/// In what models of DeepSeek-V3's kind differ.
struct DeepseekTraits {
  Replicated::Type router = Replicated::Type::kModel;
  std::int64_t dense_layers = 3;  ///< at first, where the config says nothing of it
  /// Which layers have an indexer of their own; unset: none has one.
  std::function<bool(std::int64_t layer)> own_indexer = {};
  std::string prefix = {};  ///< of names in engines and files, where the model is a part of another one
  /// What tensors of that one begin with that see, and are not sent.
  std::vector<std::string> towers = {};
  std::vector<UnsentPart> unsent = {};  ///< those of them that its config describes
};

/// Latent attention, with an indexer where there is one; dense layers first, then routed experts with a
/// correction bias and shared ones.
std::unique_ptr<Family> make_deepseek(const ModelConfig& config, const DeepseekTraits& traits);

}  // namespace weightcast
