#include "model/size_fields.hpp"

#include <fmt/format.h>

namespace weightcast {

std::int64_t SizeFields::integer(ModelConfig::Names names) {
  return remember(names, config_.integer(names));
}

std::int64_t SizeFields::integer_or(ModelConfig::Names names, std::int64_t fallback) {
  return remember(names, config_.integer_or(names, fallback));
}

std::int64_t SizeFields::remember(ModelConfig::Names names, std::int64_t value) {
  fields_ += fmt::format("{}{} {}", fields_.empty() ? "" : ", ", *names.begin(), value);
  return value;
}

}  // namespace weightcast
