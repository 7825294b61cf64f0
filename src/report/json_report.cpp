#include "report/json_report.hpp"

#include <nlohmann/json.hpp>
#include <utility>

#include "core/text.hpp"

namespace weightcast {

namespace {

/// The same with texts and names in UTF-8.
nlohmann::ordered_json in_utf8(const nlohmann::ordered_json& value) {
  if (value.is_string()) return utf8(value.get_ref<const std::string&>());
  if (!value.is_structured()) return value;
  auto result = value.is_array() ? nlohmann::ordered_json::array() : nlohmann::ordered_json::object();
  for (const auto& item : value.items()) {
    auto element = in_utf8(item.value());
    if (value.is_array()) {
      result.push_back(std::move(element));
    } else {
      result[utf8(item.key())] = std::move(element);
    }
  }
  return result;
}

}  // namespace

std::string json_report(const nlohmann::ordered_json& report, int indent) {
  try {
    return printable_json(report.dump(indent)) + "\n";
  } catch (const nlohmann::ordered_json::type_error&) {  // some bytes are no UTF-8
    return printable_json(in_utf8(report).dump(indent)) + "\n";
  }
}

}  // namespace weightcast
