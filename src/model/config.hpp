#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.hpp"

namespace weightcast {

/// Where it is said that a checkpoint holds codes, for messages, and what to do there if it holds values.
struct QuantizationPlace {
  std::string file;
  std::string field;
  std::string removal;  ///< "remove the field"
};

/// Whether the layers are sent that only the drafts of engines use, which stand behind a model's last one.
enum class Drafts : std::uint8_t {
  kLeftOut,
  kIncluded,  ///< with the model
  kAlone,     ///< as a model of their own, with the embedding and the head that they share with it
};

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

  /// `architectures`, a list of classes or one; empty when nothing is there.
  const std::vector<std::string>& architectures() const { return architectures_; }

  /// `model_type`; empty when it is not there.
  const std::string& model_type() const { return model_type_; }

  /// What the config calls the model, for messages and reports: the first of these, or the type.
  std::string architecture() const;

  /// `dtype`, or `torch_dtype` as it was called before; of `text_config` when neither is there, and bfloat16
  /// when it has none either.
  DType dtype() const;

  using Names = std::initializer_list<std::string_view>;
  /// A positive integer, far below what products of three could overflow.
  std::int64_t integer(Names names) const;
  /// The same, or `fallback` when it is absent or null.
  std::int64_t integer_or(Names names, std::int64_t fallback) const;
  /// As integer_or(), and zero will do.
  std::int64_t count_or(Names names, std::int64_t fallback) const;
  /// Whether one of the fields is there and null.
  bool is_null(Names names) const;
  bool boolean_or(Names names, bool fallback) const;
  std::vector<std::int64_t> integers_or_empty(Names names) const;
  /// A list with one of `words` for each of `layers` layers, however many where that is not given, or empty.
  std::vector<std::string> layer_words_or_empty(std::string_view name, std::optional<std::int64_t> layers,
                                                std::initializer_list<std::string_view> words) const;
  /// Of an object that has for some of `layers` layers, by number, an object of positive integers: these, by
  /// layer and name. `known` are the names that there may be.
  std::map<std::int64_t, std::map<std::string, std::int64_t>> integers_of_layers(
      std::string_view name, std::int64_t layers, std::initializer_list<std::string_view> known) const;
  std::string text_or(std::string_view name, std::string_view fallback) const;
  /// Whether the field is there, and not null.
  bool has(std::string_view name) const;

  /// What a model that wraps a text model says of that: `text_config`, with the type and the quantisation of
  /// the whole where it has none itself. Throws InputError when it is missing, or the two contradict each
  /// other about whether the head is tied.
  ModelConfig text_model() const;

  /// The text of `quantization_config`; empty when it is not there or says nothing.
  std::string quantization_config() const;
  /// Who says so: the config itself, or ModelOpt's file.
  const QuantizationPlace& quantization_place() const { return quantization_place_; }

  /// Takes `quantization_config` from the text of ModelOpt's own file, `hf_quant_config.json`, unless the
  /// config has one itself. Throws InputError, naming `origin`, when the text is not one of those.
  void add_modelopt(const std::string& text, const std::string& origin);

  /// The same model with another number of layers (`--layers`), of its text model where it wraps one.
  void set_layers(std::int64_t layers);

  /// Of the model's draft layers (`--mtp`, `--target`); at first they are left out.
  void set_drafts(Drafts drafts) { drafts_ = drafts; }
  Drafts drafts() const { return drafts_; }

  /// The text as a file would hold it: the file's own or, after a change, another with the same content, in
  /// which what Python writes for numbers that are none is a text.
  std::string text() const;

 private:
  struct Json;
  std::unique_ptr<Json> json_;
  std::string text_;  ///< the file's own; empty when something was changed
  std::string origin_;
  QuantizationPlace quantization_place_;
  std::vector<std::string> architectures_;
  std::string model_type_;
  Drafts drafts_ = Drafts::kLeftOut;
};

}  // namespace weightcast
