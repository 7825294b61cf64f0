#include "model/config.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <system_error>

#include "core/error.hpp"
#include "core/json_text.hpp"
#include "core/text.hpp"

namespace weightcast {

using nlohmann::json;

struct ModelConfig::Json {
  json root;
};

namespace {

JsonLimits limits() {
  JsonLimits limits;
  limits.python_numbers = true;
  return limits;
}

/// The first of the fields that is there and not null.
const json* find(const json& object, ModelConfig::Names names) {
  for (const std::string_view name : names) {
    const auto found = object.find(name);
    if (found != object.end() && !found->is_null()) return &*found;
  }
  return nullptr;
}

[[noreturn]] void wrong(const std::string& origin, ModelConfig::Names names, const json& value,
                        std::string_view expected) {
  throw InputError(fmt::format("{}: field '{}' is {}, which is not {}; correct it", origin,
                               fmt::join(names, "' or '"), excerpt(value.dump()), expected));
}

std::int64_t integer_from(std::int64_t least, const json& value, const std::string& origin,
                          ModelConfig::Names names) {
  constexpr std::int64_t kMost = std::int64_t{1} << 24;
  // A value without sign may be beyond the signed ones; those come out negative.
  if (!value.is_number_integer() || value.get<std::int64_t>() < least || value.get<std::int64_t>() > kMost) {
    wrong(origin, names, value,
          fmt::format("{} of at most {}", least > 0 ? "a positive integer" : "an integer from 0 on", kMost));
  }
  return value.get<std::int64_t>();
}

std::int64_t positive(const json& value, const std::string& origin, ModelConfig::Names names) {
  return integer_from(1, value, origin, names);
}

std::vector<std::string> texts_or_empty(const json& root, const std::string& origin, std::string_view name) {
  const json* const value = find(root, {name});
  std::vector<std::string> texts;
  if (value == nullptr) return texts;
  for (const json& entry : value->is_array() ? *value : json::array({*value})) {
    if (entry.is_null()) continue;
    if (!entry.is_string()) wrong(origin, {name}, *value, "a list of texts");
    if (auto text = entry.get<std::string>(); !text.empty()) texts.push_back(std::move(text));
  }
  return texts;
}

/// `torch.bfloat16` is how Python prints it, `half` and `float` are other names in PyTorch.
std::optional<DType> dtype_of(std::string_view name) {
  constexpr std::string_view kModule = "torch.";
  if (name.starts_with(kModule)) name.remove_prefix(kModule.size());
  if (name == "half") return DType::kF16;
  if (name == "float") return DType::kF32;
  return dtype_from_name(name);
}

}  // namespace

ModelConfig::ModelConfig(const std::string& text, std::string origin)
    : json_(std::make_unique<Json>(Json{parse_json(text, origin, limits())})),
      text_(text),
      origin_(std::move(origin)),
      quantization_place_{origin_, "quantization_config", "remove the field"},
      architectures_(texts_or_empty(json_->root, origin_, "architectures")) {
  const json* const type = find(json_->root, {"model_type"});
  if (type == nullptr) return;
  if (!type->is_string()) wrong(origin_, {"model_type"}, *type, "a text");
  model_type_ = type->get<std::string>();
}

ModelConfig::~ModelConfig() = default;
ModelConfig::ModelConfig(ModelConfig&&) noexcept = default;
ModelConfig& ModelConfig::operator=(ModelConfig&&) noexcept = default;

std::string ModelConfig::architecture() const {
  if (!architectures_.empty()) return excerpt(architectures_.front());
  return model_type_.empty() ? "the model" : excerpt(model_type_);
}

DType ModelConfig::dtype() const {
  const Names names{"dtype", "torch_dtype"};
  const json* value = find(json_->root, names);
  if (value == nullptr) {
    const json* const nested = find(json_->root, {"text_config"});
    if (nested != nullptr && nested->is_object()) value = find(*nested, names);
  }
  if (value == nullptr) return DType::kBF16;
  const auto dtype = value->is_string() ? dtype_of(value->get<std::string>()) : std::nullopt;
  if (!dtype || (*dtype != DType::kBF16 && *dtype != DType::kF16 && *dtype != DType::kF32)) {
    throw InputError(fmt::format("{}: dtype {} is not supported; use bfloat16, float16 or float32", origin_,
                                 excerpt(value->dump())));
  }
  return *dtype;
}

std::int64_t ModelConfig::integer(Names names) const {
  const json* const value = find(json_->root, names);
  if (value != nullptr) return positive(*value, origin_, names);
  throw InputError(fmt::format("{}: field '{}' is missing; {} needs it", origin_, fmt::join(names, "' or '"),
                               architecture()));
}

std::int64_t ModelConfig::integer_or(Names names, std::int64_t fallback) const {
  const json* const value = find(json_->root, names);
  return value == nullptr ? fallback : positive(*value, origin_, names);
}

std::int64_t ModelConfig::count_or(Names names, std::int64_t fallback) const {
  const json* const value = find(json_->root, names);
  return value == nullptr ? fallback : integer_from(0, *value, origin_, names);
}

bool ModelConfig::is_null(Names names) const {
  return std::ranges::any_of(names, [&](std::string_view name) {
    const auto found = json_->root.find(name);
    return found != json_->root.end() && found->is_null();
  });
}

bool ModelConfig::boolean_or(Names names, bool fallback) const {
  const json* const value = find(json_->root, names);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) wrong(origin_, names, *value, "true or false");
  return value->get<bool>();
}

std::vector<std::int64_t> ModelConfig::integers_or_empty(Names names) const {
  std::vector<std::int64_t> result;
  const json* const value = find(json_->root, names);
  if (value == nullptr) return result;
  const auto is_integer = [](const json& element) { return element.is_number_integer(); };
  if (!value->is_array() || !std::all_of(value->begin(), value->end(), is_integer)) {
    wrong(origin_, names, *value, "a list of integers");
  }
  for (const json& element : *value) result.push_back(element.get<std::int64_t>());
  return result;
}

std::vector<std::string> ModelConfig::layer_words_or_empty(
    std::string_view name, std::optional<std::int64_t> layers,
    std::initializer_list<std::string_view> words) const {
  std::vector<std::string> list = texts_or_empty(json_->root, origin_, name);
  if (list.empty()) return list;
  for (const std::string& word : list) {
    if (std::ranges::find(words, word) != words.end()) continue;
    throw InputError(fmt::format("{}: field '{}' says '{}' of a layer, which is none of {}; correct it",
                                 origin_, name, excerpt(word), fmt::join(words, ", ")));
  }
  if (layers && std::ssize(list) != *layers) {
    throw InputError(
        fmt::format("{}: field '{}' has {} entries but num_hidden_layers is {}; correct what is "
                    "wrong",
                    origin_, name, list.size(), *layers));
  }
  return list;
}

std::map<std::int64_t, std::map<std::string, std::int64_t>> ModelConfig::integers_of_layers(
    std::string_view name, std::int64_t layers, std::initializer_list<std::string_view> known) const {
  std::map<std::int64_t, std::map<std::string, std::int64_t>> result;
  const json* const value = find(json_->root, {name});
  if (value == nullptr) return result;
  if (!value->is_object()) wrong(origin_, {name}, *value, "an object with an entry for a layer");
  for (const auto& [key, entry] : value->items()) {
    std::int64_t layer = -1;
    const char* const end = key.data() + key.size();
    const auto [rest, status] = std::from_chars(key.data(), end, layer);
    if (status != std::errc() || rest != end || layer < 0 || layer >= layers || result.contains(layer)) {
      throw InputError(fmt::format(
          "{}: field '{}' has an entry '{}', which is none of the numbers 0 to {} of layers, or one "
          "twice; correct it",
          origin_, name, excerpt(key), layers - 1));
    }
    if (!entry.is_object()) wrong(origin_, {name}, entry, "an object for a layer");
    std::map<std::string, std::int64_t>& sizes = result[layer];
    for (const auto& [field, size] : entry.items()) {
      if (std::ranges::find(known, field) == known.end()) {
        throw InputError(fmt::format("{}: field '{}' has '{}' for layer {}; only {} are known of {}", origin_,
                                     name, excerpt(field), layer, fmt::join(known, ", "), architecture()));
      }
      sizes[field] = positive(size, origin_, {name});
    }
  }
  return result;
}

std::string ModelConfig::text_or(std::string_view name, std::string_view fallback) const {
  const json* const value = find(json_->root, {name});
  if (value == nullptr) return std::string(fallback);
  if (!value->is_string()) wrong(origin_, {name}, *value, "a text");
  return value->get<std::string>();
}

bool ModelConfig::has(std::string_view name) const {
  return find(json_->root, {name}) != nullptr;
}

std::string ModelConfig::quantization_config() const {
  const json* const value = find(json_->root, {"quantization_config"});
  if (value == nullptr) return "";
  if (!value->is_object()) wrong(origin_, {"quantization_config"}, *value, "an object");
  return value->empty() ? "" : value->dump();
}

void ModelConfig::add_modelopt(const std::string& text, const std::string& origin) {
  if (!quantization_config().empty()) return;
  const json file = parse_json(text, origin, limits());
  const json* const quantization = find(file, {"quantization"});
  if (quantization == nullptr || !quantization->is_object()) {
    throw InputError(
        fmt::format("{}: has no object 'quantization'; remove the file if the weights are not "
                    "quantised",
                    origin));
  }
  // Where the cache alone is quantised, weights are values.
  if (find(*quantization, {"quant_algo"}) == nullptr) return;
  json& config = json_->root["quantization_config"] = *quantization;
  config["quant_method"] = "modelopt";
  quantization_place_ = {origin, "quantization", "remove the file"};
  text_.clear();
}

void ModelConfig::set_layers(std::int64_t layers) {
  const auto nested = json_->root.find("text_config");
  const bool wraps = nested != json_->root.end() && nested->is_object();
  json& model = wraps ? *nested : json_->root;
  model["num_hidden_layers"] = layers;
  // Lists with one entry a layer follow, and go where they have none for the last ones.
  for (const char* name : {"layer_types", "mlp_layer_types", "indexer_types"}) {
    const auto list = model.find(name);
    if (list == model.end() || !list->is_array()) continue;
    if (std::ssize(*list) > layers) {
      list->erase(list->begin() + layers, list->end());
    } else if (std::ssize(*list) < layers) {
      model.erase(name);
    }
  }
  // A model whose layers are of several kinds and that list alone says which is not made longer.
  const auto blocks = model.find("layers_block_type");
  if (blocks != model.end() && blocks->is_array() && std::ssize(*blocks) > layers) {
    blocks->erase(blocks->begin() + layers, blocks->end());
  }
  const auto own = model.find("per_layer_config");
  if (own != model.end() && own->is_object()) {
    // Keys are numbers, which may have zeros in front.
    const auto is_behind = [&](const std::string& key) {
      std::int64_t layer = 0;
      const auto [rest, status] = std::from_chars(key.data(), key.data() + key.size(), layer);
      return status == std::errc() && layer >= layers;
    };
    for (auto entry = own->begin(); entry != own->end();) {
      entry = is_behind(entry.key()) ? own->erase(entry) : std::next(entry);
    }
  }
  const auto mixers = model.find("hybrid_override_pattern");
  if (mixers != model.end() && mixers->is_string()) {
    *mixers = mixers->get<std::string>().substr(0, static_cast<std::size_t>(layers));
  }
  // A list, too, of one letter a layer.
  const auto pattern = model.find("index_topk_pattern");
  if (pattern != model.end() && pattern->is_string()) {
    const std::string letters = pattern->get<std::string>();
    if (std::ssize(letters) > layers) {
      *pattern = letters.substr(0, static_cast<std::size_t>(layers));
    } else if (std::ssize(letters) < layers) {
      model.erase("index_topk_pattern");
    }
  }
  // Of the layers that take keys and values from earlier ones as many as remain behind one that has its own.
  const auto shared = model.find("num_kv_shared_layers");
  if (shared != model.end() && shared->is_number_integer() && *shared >= layers) *shared = layers - 1;
  text_.clear();
}

ModelConfig ModelConfig::text_model() const {
  const json* const nested = find(json_->root, {"text_config"});
  if (nested == nullptr) {
    throw InputError(fmt::format("{}: field 'text_config' is missing; {} needs it", origin_, architecture()));
  }
  if (!nested->is_object()) wrong(origin_, {"text_config"}, *nested, "an object");
  constexpr std::string_view kTied = "tie_word_embeddings";
  json text = *nested;
  const json* const own = find(text, {kTied});
  const json* const outer = find(json_->root, {kTied});
  if (own != nullptr && outer != nullptr && *own != *outer) {
    throw InputError(fmt::format(
        "{}: field '{}' is {} but {} in text_config: transformers goes by the one, engines by the "
        "other; make them the same",
        origin_, kTied, excerpt(outer->dump()), excerpt(own->dump())));
  }
  const auto require_same = [&](Names names) {
    const json* const inner = find(text, names);
    const json* const around = find(json_->root, names);
    if (inner == nullptr || around == nullptr || *inner == *around) return;
    throw InputError(fmt::format("{}: field '{}' is {} but {} in text_config; make them the same", origin_,
                                 *names.begin(), excerpt(around->dump()), excerpt(inner->dump())));
  };
  require_same({"dtype", "torch_dtype"});
  require_same({"quantization_config"});
  for (const std::string_view name : {std::string_view("dtype"), std::string_view("torch_dtype"),
                                      std::string_view("quantization_config"), kTied}) {
    const json* const given = find(json_->root, {name});
    if (given != nullptr && find(text, {name}) == nullptr) text[std::string(name)] = *given;
  }
  ModelConfig model(text.dump(), origin_ + " (text_config)");
  model.quantization_place_ = quantization_place_;
  model.drafts_ = drafts_;
  return model;
}

std::string ModelConfig::text() const {
  return text_.empty() ? json_->root.dump(2) + "\n" : text_;
}

}  // namespace weightcast
