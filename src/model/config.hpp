#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.hpp"

namespace weightcast {

/// A Hugging Face `config.json`. Fields are asked for by all the names they go by (`num_experts`,
/// `num_local_experts`); a missing or ill-typed one is an InputError that names the file and the field.
class ModelConfig {
 public:
  /// `origin` names the text in messages (its path).
  ModelConfig(const std::string& text, std::string origin);
  ~ModelConfig();
  ModelConfig(ModelConfig&&) noexcept;
  ModelConfig& operator=(ModelConfig&&) noexcept;
  ModelConfig(const ModelConfig&) = delete;
  ModelConfig& operator=(const ModelConfig&) = delete;

  const std::string& origin() const { return origin_; }

  /// `architectures[0]`.
  const std::string& architecture() const { return architecture_; }

  /// `torch_dtype` or `dtype`; bfloat16 when neither is there.
  DType dtype() const;

  using Names = std::initializer_list<std::string_view>;
  /// A positive integer.
  std::int64_t integer(Names names) const;
  /// A positive integer, or `fallback` when it is absent or null.
  std::int64_t integer_or(Names names, std::int64_t fallback) const;
  bool boolean_or(Names names, bool fallback) const;
  std::vector<std::int64_t> integers_or_empty(Names names) const;

  /// The text of `quantization_config`; empty when it is not there.
  std::string quantization_config() const;

  /// Takes `quantization_config` from the text of ModelOpt's own file, `hf_quant_config.json`, unless the
  /// config has one itself. Throws InputError, naming `origin`, when the text is not one of those.
  void add_modelopt(const std::string& text, const std::string& origin);

  /// The same model with another number of layers (`--layers`).
  void set_layers(std::int64_t layers);

  /// The text as a file would hold it, changes included.
  std::string text() const;

 private:
  struct Json;
  std::unique_ptr<Json> json_;
  std::string origin_;
  std::string architecture_;
};

}  // namespace weightcast
