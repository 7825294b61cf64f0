#pragma once

#include <optional>
#include <regex>
#include <string>
#include <unordered_set>
#include <vector>

#include "core/quantizer.hpp"
#include "model/config.hpp"

namespace weightcast {

/// What a config's `quantization_config` says of a checkpoint that holds codes and scales: fp8 of
/// transformers and vLLM (`weight_block_size`), ModelOpt (`quant_algo`), compressed-tensors (float, 8 bits),
/// mxfp8 and mxfp4.
class StoredQuantization {
 public:
  /// Nothing for a checkpoint of values. Throws InputError, naming the field, for what is not known.
  static std::optional<StoredQuantization> of(const ModelConfig& config);

  Quantizer quantizer() const { return quantizer_; }

  /// Whether module `name` is stored as values (`modules_to_not_convert`, `ignored_layers`, `ignore`,
  /// `exclude_modules`: its name, the first or the last parts of it, `re:` and a regular expression, or a
  /// pattern with `*`).
  bool keeps_values(const std::string& name) const;

 private:
  Quantizer quantizer_;
  std::unordered_set<std::string> names_;
  std::vector<std::regex> patterns_;
};

}  // namespace weightcast
