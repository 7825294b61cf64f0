#include "core/json_fields.hpp"

#include <fmt/format.h>

#include <utility>

#include "core/error.hpp"

namespace weightcast {

using nlohmann::json;

bool is_whole_number(const json& value, std::int64_t least) {
  const bool fits = !value.is_number_unsigned() || value.get<std::uint64_t>() <= INT64_MAX;
  return value.is_number_integer() && fits && value.get<std::int64_t>() >= least;
}

JsonFields::JsonFields(const json& object, std::string where, std::string remedy)
    : object_(object), where_(std::move(where)), remedy_(std::move(remedy)) {
  if (!object.is_object()) throw InputError(fmt::format("{}: is no object; {}", where_, remedy_));
}

std::string JsonFields::text(const char* name, bool needed) const {
  const json* value = find(name, needed);
  if (value == nullptr) return "";
  if (!value->is_string()) refuse(name, "is no text");
  return value->get<std::string>();
}

std::int64_t JsonFields::number(const char* name, std::int64_t least) const {
  const json& value = *find(name, true);
  if (!is_whole_number(value, least)) {
    refuse(name, fmt::format("is no whole number of at least {}", least));
  }
  return value.get<std::int64_t>();
}

const json& JsonFields::list(const char* name) const {
  const json& value = *find(name, true);
  if (!value.is_array()) refuse(name, "is no list");
  return value;
}

std::vector<std::int64_t> JsonFields::numbers(const char* name) const {
  std::vector<std::int64_t> numbers;
  for (const json& value : list(name)) {
    if (!is_whole_number(value)) refuse(name, "holds what is no size");
    numbers.push_back(value.get<std::int64_t>());
  }
  return numbers;
}

const json* JsonFields::find(const char* name, bool needed) const {
  const auto found = object_.find(name);
  if (found != object_.end()) return &*found;
  if (needed) refuse(name, "is missing");
  return nullptr;
}

void JsonFields::refuse(const char* name, const std::string& what) const {
  throw InputError(fmt::format("{}: '{}' {}; {}", where_, name, what, remedy_));
}

}  // namespace weightcast
