#include "model/stored_quantization.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/error.hpp"

namespace weightcast {

namespace {

std::string text_or_empty(const nlohmann::json& object, const char* field) {
  const auto found = object.find(field);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

[[noreturn]] void unknown(const std::string& origin, const std::string& what) {
  throw InputError(fmt::format(
      "{}: field 'quantization_config': {} is not known; known are fp8 (weight_block_size [128, 128] or "
      "none), "
      "modelopt (FP8, NVFP4), compressed-tensors (float of 8 bits by tensor or channel), mxfp8 and mxfp4",
      origin, what));
}

/// Of compressed-tensors: what its first group says of weights.
Quantizer quantizer_of_groups(const nlohmann::json& config, const std::string& origin) {
  const auto groups = config.find("config_groups");
  if (groups == config.end() || !groups->is_object() || groups->size() != 1 ||
      !groups->begin()->is_object()) {
    unknown(origin, "compressed-tensors without one group in config_groups");
  }
  const auto weights = groups->begin()->find("weights");
  if (weights == groups->begin()->end() || !weights->is_object()) {
    unknown(origin, "compressed-tensors without weights in config_groups");
  }
  const auto bits = weights->find("num_bits");
  const bool float8 = text_or_empty(*weights, "type") == "float" && bits != weights->end() && *bits == 8;
  const std::string strategy = text_or_empty(*weights, "strategy");
  if (float8 && strategy == "channel") return {QuantScheme::kFp8Channel, QuantRule::kDivide};
  if (float8 && strategy == "tensor") return {QuantScheme::kFp8Tensor, QuantRule::kSglang};
  unknown(origin, "compressed-tensors " + weights->dump());
}

Quantizer quantizer_of(const nlohmann::json& config, const std::string& origin) {
  const std::string method = text_or_empty(config, "quant_method");
  if (method == "fp8") {
    const auto block = config.find("weight_block_size");
    if (block == config.end() || block->is_null()) return {QuantScheme::kFp8Tensor, QuantRule::kSglang};
    if (*block != nlohmann::json{128, 128}) unknown(origin, "weight_block_size " + block->dump());
    const bool powers_of_two = text_or_empty(config, "scale_fmt") == "ue8m0";
    return {QuantScheme::kFp8Block, powers_of_two ? QuantRule::kUe8m0 : QuantRule::kSlime};
  }
  if (method == "compressed-tensors") return quantizer_of_groups(config, origin);
  if (method == "mxfp8") return {QuantScheme::kMxfp8, QuantRule::kRoundUp};
  if (method == "mxfp4") return {QuantScheme::kMxfp4, QuantRule::kRoundUp};
  const std::string algorithm = text_or_empty(config, "quant_algo");
  if (method.starts_with("modelopt") && algorithm == "FP8")
    return {QuantScheme::kFp8Tensor, QuantRule::kSglang};
  if (method.starts_with("modelopt") && algorithm == "NVFP4") return {QuantScheme::kNvfp4, QuantRule::kTe};
  unknown(origin, fmt::format("quant_method '{}'{}", method, algorithm.empty() ? "" : " " + algorithm));
}

/// Of all of a name: `*` stands for anything; dots are dots.
std::string expression_of(const std::string& pattern) {
  std::string expression;
  for (const char c : pattern) {
    if (c == '*') {
      expression += ".*";
    } else {
      if (std::string_view(".+?()[]{}^$|\\").find(c) != std::string_view::npos) expression += '\\';
      expression += c;
    }
  }
  return expression + '$';
}

}  // namespace

std::optional<StoredQuantization> StoredQuantization::of(const ModelConfig& config) {
  const std::string text = config.quantization_config();
  if (text.empty()) return std::nullopt;
  const nlohmann::json json = nlohmann::json::parse(text);
  StoredQuantization stored;
  stored.quantizer_ = quantizer_of(json, config.origin());
  for (const char* field : {"modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules"}) {
    const auto list = json.find(field);
    if (list == json.end() || !list->is_array()) continue;
    for (const auto& entry : *list) {
      if (!entry.is_string()) continue;
      const auto name = entry.get<std::string>();
      try {
        if (name.starts_with("re:")) {
          stored.patterns_.emplace_back(name.substr(3));
        } else if (name.find('*') != std::string::npos) {
          stored.patterns_.emplace_back(expression_of(name));
        } else {
          stored.names_.insert(name);
        }
      } catch (const std::regex_error&) {
        throw InputError(fmt::format("{}: field 'quantization_config.{}': {} is no regular expression",
                                     config.origin(), field, name));
      }
    }
  }
  return stored;
}

bool StoredQuantization::keeps_values(const std::string& name) const {
  // Lists of hundreds of names are asked for tens of thousands of modules: no more than a look for each dot.
  if (names_.contains(name)) return true;
  for (std::size_t dot = name.find('.'); dot != std::string::npos; dot = name.find('.', dot + 1)) {
    if (names_.contains(name.substr(0, dot)) || names_.contains(name.substr(dot + 1))) return true;
  }
  // From the name's beginning on, as Python's re.match() does.
  return std::any_of(patterns_.begin(), patterns_.end(), [&](const std::regex& pattern) {
    return std::regex_search(name, pattern, std::regex_constants::match_continuous);
  });
}

}  // namespace weightcast
