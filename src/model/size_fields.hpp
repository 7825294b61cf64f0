#pragma once

#include <cstdint>
#include <string>

#include "model/config.hpp"

namespace weightcast {

/// Reads the sizes of a model from its config.json and remembers them, so that a message can name all that a
/// wrong one may follow from.
class SizeFields {
 public:
  /// `config` must outlive it.
  explicit SizeFields(const ModelConfig& config) : config_(config) {}

  /// As ModelConfig's functions.
  std::int64_t integer(ModelConfig::Names names);
  std::int64_t integer_or(ModelConfig::Names names, std::int64_t fallback);

  /// `config.json: hidden_size 2048, num_hidden_layers 48`
  std::string text() const { return config_.origin() + ": " + fields_; }

 private:
  std::int64_t remember(ModelConfig::Names names, std::int64_t value);

  const ModelConfig& config_;
  std::string fields_;
};

}  // namespace weightcast
