#include "model/stored_quantization.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>

#include "core/error.hpp"
#include "core/json_text.hpp"
#include "core/text.hpp"
#include "model/stored_names.hpp"

namespace weightcast {

using nlohmann::json;

namespace {

std::string text_or_empty(const json& object, const char* field) {
  const auto found = object.find(field);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

/// Whether an object has something else than null under a name.
bool has(const json& object, const char* field) {
  const auto found = object.find(field);
  return found != object.end() && !found->is_null();
}

[[noreturn]] void unknown(const QuantizationPlace& place, const std::string& what) {
  throw InputError(fmt::format(
      "{}: field '{}': {} is not known; known are fp8 (weight_block_size [128, 128] or "
      "none), modelopt (FP8, NVFP4), compressed-tensors (float of 8 bits by tensor or channel), mxfp8 and "
      "mxfp4; if the weights are values and no codes, {}",
      place.file, place.field, what, place.removal));
}

/// Of compressed-tensors: what its only group that says something of weights says. Nothing where the cache or
/// activations alone are quantised.
std::optional<Quantizer> quantizer_of_groups(const json& config, const QuantizationPlace& place) {
  const json groups = has(config, "config_groups") ? config.at("config_groups") : json::object();
  if (!groups.is_object()) unknown(place, "compressed-tensors with config_groups that are no object");
  std::vector<const json*> weights;
  for (const json& group : groups) {
    if (!group.is_object()) unknown(place, "compressed-tensors with a group that is no object");
    if (has(group, "weights")) weights.push_back(&group.at("weights"));
  }
  // A sparse or transformed model has no groups, and its format says that the weights are dense.
  const bool dense = text_or_empty(config, "format") == "dense";
  if (weights.empty() && (dense || has(config, "kv_cache_scheme") || !groups.empty())) return std::nullopt;
  if (weights.size() != 1 || !weights.front()->is_object()) {
    unknown(place, "compressed-tensors without one group for weights in config_groups");
  }
  const json& how = *weights.front();
  const auto bits = how.find("num_bits");
  const bool float8 = text_or_empty(how, "type") == "float" && bits != how.end() && *bits == 8;
  const std::string strategy = text_or_empty(how, "strategy");
  if (float8 && strategy == "channel") return Quantizer{QuantScheme::kFp8Channel, QuantRule::kDivide};
  if (float8 && strategy == "tensor") return Quantizer{QuantScheme::kFp8Tensor, QuantRule::kSglang};
  unknown(place, "compressed-tensors " + excerpt(how.dump()));
}

/// Of Quark: whether it says something, and nothing of it of weights.
bool quark_keeps_weights(const json& config) {
  if (!has(config, "global_quant_config")) return false;
  const auto keeps = [](const json& part) {
    return part.is_null() || (part.is_object() && !has(part, "weight"));
  };
  const auto all_keep = [&](const char* field) {
    if (!has(config, field)) return true;
    const json& parts = config.at(field);
    return parts.is_object() && std::all_of(parts.begin(), parts.end(), keeps);
  };
  return keeps(config.at("global_quant_config")) && all_keep("layer_quant_config") &&
         all_keep("layer_type_quant_config");
}

/// Nothing where weights are values because the cache alone is quantised.
std::optional<Quantizer> quantizer_of(const json& config, const QuantizationPlace& place) {
  const std::string method = text_or_empty(config, "quant_method");
  if (method == "fp8") {
    if (!has(config, "weight_block_size")) return Quantizer{QuantScheme::kFp8Tensor, QuantRule::kSglang};
    const json& block = config.at("weight_block_size");
    if (block != json{128, 128}) unknown(place, "weight_block_size " + excerpt(block.dump()));
    const bool powers_of_two = text_or_empty(config, "scale_fmt") == "ue8m0";
    return Quantizer{QuantScheme::kFp8Block, powers_of_two ? QuantRule::kUe8m0 : QuantRule::kSlime};
  }
  if (method == "compressed-tensors") return quantizer_of_groups(config, place);
  if (method == "mxfp8") return Quantizer{QuantScheme::kMxfp8, QuantRule::kRoundUp};
  if (method == "mxfp4") return Quantizer{QuantScheme::kMxfp4, QuantRule::kRoundUp};
  if (method == "quark" && quark_keeps_weights(config)) return std::nullopt;
  const bool modelopt = method.empty() || method.starts_with("modelopt");
  const bool cache = has(config, "kv_cache_quant_algo") || has(config, "kv_cache_scheme");
  if (modelopt && cache && !has(config, "quant_algo")) return std::nullopt;
  const std::string algorithm = text_or_empty(config, "quant_algo");
  if (method.starts_with("modelopt") && algorithm == "FP8") {
    return Quantizer{QuantScheme::kFp8Tensor, QuantRule::kSglang};
  }
  if (method.starts_with("modelopt") && algorithm == "NVFP4") {
    if (has(config, "group_size") && config.at("group_size") != 16) {
      unknown(place, fmt::format("NVFP4 with group_size {}, which is 16 elsewhere,",
                                 excerpt(config.at("group_size").dump())));
    }
    return Quantizer{QuantScheme::kNvfp4, QuantRule::kTe};
  }
  if (method.starts_with("modelopt") && algorithm.empty()) {
    throw InputError(
        fmt::format("{}: field '{}': quant_method '{}' needs quant_algo beside it, a text "
                    "(FP8, NVFP4); if "
                    "the weights are values and no codes, {}",
                    place.file, place.field, excerpt(method), place.removal));
  }
  if (method.empty()) unknown(place, "a quantisation without quant_method");
  unknown(place,
          excerpt(fmt::format("quant_method '{}'{}", method, algorithm.empty() ? "" : " " + algorithm)));
}

}  // namespace

std::optional<StoredQuantization> StoredQuantization::of(const ModelConfig& config) {
  const std::string text = config.quantization_config();
  if (text.empty()) return std::nullopt;
  const QuantizationPlace& place = config.quantization_place();
  const json parsed = parse_json(text, place.file);
  const std::optional<Quantizer> quantizer = quantizer_of(parsed, place);
  if (!quantizer) return std::nullopt;
  StoredQuantization stored;
  stored.quantizer_ = *quantizer;
  stored.place_ = place;
  for (const char* field : {"modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules"}) {
    if (!has(parsed, field)) continue;
    const json& list = parsed.at(field);
    const std::string what = fmt::format("{}: field '{}.{}'", place.file, place.field, field);
    const auto is_text = [](const json& entry) { return entry.is_string(); };
    if (!list.is_array() || !std::all_of(list.begin(), list.end(), is_text)) {
      throw InputError(
          fmt::format("{} is {}, which is not a list of texts; correct it", what, excerpt(list.dump())));
    }
    for (const json& entry : list) stored.keep(entry.get<std::string>(), what);
  }
  return stored;
}

void StoredQuantization::keep(const std::string& entry, const std::string& field) {
  constexpr std::string_view kExpression = "re:";
  if (!entry.starts_with(kExpression) && entry.find('*') == entry.npos) {
    // Modules are asked for by the model's own names, whatever the checkpoint puts in front of them.
    names_.insert(entry);
    names_.insert(canonical_name(entry));
    return;
  }
  const std::string origin = fmt::format("{}: {}", field, excerpt(entry));
  if (entry.starts_with(kExpression)) {
    patterns_.add_expression(std::string_view(entry).substr(kExpression.size()), origin);
  } else {
    patterns_.add_glob(entry, origin);
  }
}

bool StoredQuantization::keeps_values(const std::string& name) {
  // Lists of hundreds of names are asked for tens of thousands of modules: no more than a look for each dot.
  if (keeps_linear_layers_ || names_.contains(name)) return true;
  for (std::size_t dot = name.find('.'); dot != std::string::npos; dot = name.find('.', dot + 1)) {
    if (names_.contains(name.substr(0, dot)) || names_.contains(name.substr(dot + 1))) return true;
  }
  return patterns_.match(name);
}

}  // namespace weightcast
