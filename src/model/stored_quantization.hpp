#pragma once

#include <optional>
#include <string>
#include <unordered_set>

#include "core/quantizer.hpp"
#include "model/config.hpp"
#include "model/pattern_list.hpp"

namespace weightcast {

/// What a config's `quantization_config` says of a checkpoint that holds codes and scales: fp8 of
/// transformers and vLLM (`weight_block_size`), ModelOpt (`quant_algo`), compressed-tensors (float, 8 bits),
/// mxfp8 and mxfp4.
class StoredQuantization {
 public:
  /// Nothing for a checkpoint of values, of which the cache may be quantised. Throws InputError, naming the
  /// field, for what is not known.
  static std::optional<StoredQuantization> of(const ModelConfig& config);

  Quantizer quantizer() const { return quantizer_; }

  const QuantizationPlace& place() const { return place_; }

  /// Whether module `name` is stored as values (`modules_to_not_convert`, `ignored_layers`, `ignore`,
  /// `exclude_modules`: its name, the first or the last parts of it, `re:` and a regular expression, or a
  /// pattern with `*`). Throws InputError for a pattern that takes too long.
  bool keeps_values(const std::string& name);

  /// From now on all linear layers are values: of a family whose checkpoints hold codes of experts alone,
  /// whatever the lists say.
  void keep_linear_layers() { keeps_linear_layers_ = true; }

 private:
  /// Takes an entry of those lists; `field` names the list in messages.
  void keep(const std::string& entry, const std::string& field);

  Quantizer quantizer_;
  QuantizationPlace place_;
  bool keeps_linear_layers_ = false;
  std::unordered_set<std::string> names_;
  PatternList patterns_;
};

}  // namespace weightcast
