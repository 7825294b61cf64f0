#include "model/config.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "core/error.hpp"

namespace weightcast {

struct ModelConfig::Json {
  nlohmann::json root;

  /// The first of the fields that is there and not null.
  const nlohmann::json* find(Names names) const {
    for (const std::string_view name : names) {
      const auto found = root.find(name);
      if (found != root.end() && !found->is_null()) return &*found;
    }
    return nullptr;
  }
};

namespace {

std::string join(ModelConfig::Names names) {
  return fmt::format("{}", fmt::join(names, "' or '"));
}

[[noreturn]] void wrong(const std::string& origin, ModelConfig::Names names, std::string_view expected) {
  throw InputError(fmt::format("{}: field '{}' is not {}", origin, join(names), expected));
}

std::int64_t positive(const nlohmann::json& value, const std::string& origin, ModelConfig::Names names) {
  // Far above any model; products of two stay exact.
  constexpr std::int64_t kMost = std::int64_t{1} << 31;
  if (!value.is_number_integer() || value.get<std::int64_t>() <= 0 || value.get<std::int64_t>() > kMost) {
    wrong(origin, names, "a positive integer below 2^31");
  }
  return value.get<std::int64_t>();
}

}  // namespace

ModelConfig::ModelConfig(const std::string& text, std::string origin)
    : json_(std::make_unique<Json>()), origin_(std::move(origin)) {
  json_->root = nlohmann::json::parse(text, nullptr, false);
  if (!json_->root.is_object()) throw InputError(fmt::format("{}: not a JSON object", origin_));
  const auto* architectures = json_->find({"architectures"});
  if (architectures == nullptr || !architectures->is_array() || architectures->empty() ||
      !architectures->front().is_string()) {
    throw InputError(
        fmt::format("{}: field 'architectures' is missing; it names the model's class", origin_));
  }
  architecture_ = architectures->front().get<std::string>();
}

ModelConfig::~ModelConfig() = default;
ModelConfig::ModelConfig(ModelConfig&&) noexcept = default;
ModelConfig& ModelConfig::operator=(ModelConfig&&) noexcept = default;

DType ModelConfig::dtype() const {
  const auto* value = json_->find({"torch_dtype", "dtype"});
  if (value == nullptr) return DType::kBF16;
  const auto dtype = value->is_string() ? dtype_from_name(value->get<std::string>()) : std::nullopt;
  if (!dtype || (*dtype != DType::kBF16 && *dtype != DType::kF16 && *dtype != DType::kF32)) {
    throw InputError(fmt::format("{}: dtype {} is not supported; use bfloat16, float16 or float32", origin_,
                                 value->dump()));
  }
  return *dtype;
}

std::int64_t ModelConfig::integer(Names names) const {
  const auto* value = json_->find(names);
  if (value == nullptr) {
    throw InputError(
        fmt::format("{}: field '{}' is missing; {} needs it", origin_, join(names), architecture_));
  }
  return positive(*value, origin_, names);
}

std::int64_t ModelConfig::integer_or(Names names, std::int64_t fallback) const {
  const auto* value = json_->find(names);
  return value == nullptr ? fallback : positive(*value, origin_, names);
}

bool ModelConfig::boolean_or(Names names, bool fallback) const {
  const auto* value = json_->find(names);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) wrong(origin_, names, "true or false");
  return value->get<bool>();
}

std::vector<std::int64_t> ModelConfig::integers_or_empty(Names names) const {
  std::vector<std::int64_t> result;
  const auto* value = json_->find(names);
  if (value == nullptr) return result;
  if (!value->is_array()) wrong(origin_, names, "a list of integers");
  for (const auto& element : *value) {
    if (!element.is_number_integer()) wrong(origin_, names, "a list of integers");
    result.push_back(element.get<std::int64_t>());
  }
  return result;
}

std::string ModelConfig::quantization_config() const {
  const auto* value = json_->find({"quantization_config"});
  if (value == nullptr) return "";
  if (!value->is_object()) wrong(origin_, {"quantization_config"}, "an object");
  return value->dump();
}

void ModelConfig::add_modelopt(const std::string& text, const std::string& origin) {
  if (json_->find({"quantization_config"}) != nullptr) return;
  const auto file = nlohmann::json::parse(text, nullptr, false);
  const auto quantization = file.is_object() ? file.find("quantization") : file.end();
  if (!file.is_object() || quantization == file.end() || !quantization->is_object()) {
    throw InputError(
        fmt::format("{}: has no object 'quantization'; remove the file if the weights are not "
                    "quantised",
                    origin));
  }
  // Where the cache alone is quantised, weights are values.
  if (const auto algorithm = quantization->find("quant_algo");
      algorithm == quantization->end() || algorithm->is_null()) {
    return;
  }
  auto& config = json_->root["quantization_config"] = *quantization;
  config["quant_method"] = "modelopt";
}

void ModelConfig::set_layers(std::int64_t layers) {
  json_->root["num_hidden_layers"] = layers;
  // A list with one entry a layer would no longer fit; the families here do not need it.
  json_->root.erase("layer_types");
}

std::string ModelConfig::text() const {
  return json_->root.dump(2) + "\n";
}

}  // namespace weightcast
