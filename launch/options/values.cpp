#include "launch/options/values.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <utility>

#include "core/error.hpp"
#include "core/text.hpp"
#include "core/units.hpp"
#include "launch/options/table.hpp"
#include "model/layer_counts.hpp"

namespace weightcast {

namespace {

std::optional<double> finite_number(const std::string& text) {
  char* end = nullptr;
  const double number = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !std::isfinite(number)) return std::nullopt;
  return number;
}

}  // namespace

Values::Values(boost::program_options::variables_map map, Origins origins)
    : map_(std::move(map)), origins_(std::move(origins)) {}

std::string Values::label(const std::string& name) const {
  const auto found = origins_.find(name);
  return found == origins_.end() ? "--" + name : found->second;
}

bool Values::typed(const char* name) const {
  return has(name) && !origins_.contains(name);
}

bool Values::flag(const char* name) const {
  return has(name) && map_[name].as<bool>();
}

std::string Values::text(const char* name, const std::string& fallback) const {
  return has(name) ? map_[name].as<std::string>() : fallback;
}

std::int64_t Values::integer(const char* name, std::int64_t fallback, std::int64_t least,
                             std::int64_t most) const {
  if (!has(name)) return fallback;
  const std::string value = text(name, "");
  std::size_t used = 0;
  std::int64_t number = 0;
  try {
    number = std::stoll(value, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  if (used == 0 || used != value.size() || number < least || number > most) {
    throw UsageError(fmt::format("{} {}: write an integer of at least {} and at most {}", label(name),
                                 excerpt(value), least, most));
  }
  return number;
}

std::int64_t Values::bytes(const char* name, std::int64_t fallback, std::int64_t least) const {
  if (!has(name)) return fallback;
  std::int64_t value = 0;
  try {
    value = parse_bytes(text(name, ""));
  } catch (const UsageError& error) {
    throw UsageError(fmt::format("{}: {}", label(name), error.what()));
  }
  if (value >= least) return value;
  throw UsageError(fmt::format("{} {}: too small; the least is {}", label(name), excerpt(text(name, "")),
                               format_bytes(least)));
}

double Values::share(const char* name) const {
  const std::string value = text(name, "0");
  const std::optional<double> share = finite_number(value);
  if (share && *share >= 0) return *share;
  throw UsageError(fmt::format("{} {}: write a share such as 0.95", label(name), excerpt(value)));
}

double Values::positive(const char* name) const {
  const std::string value = text(name, "");
  const std::optional<double> number = finite_number(value);
  if (number && *number > 0) return *number;
  throw UsageError(fmt::format("{} {}: write a number above 0, such as 400", label(name), excerpt(value)));
}

std::string Values::choice(const char* name, const std::vector<std::string>& choices) const {
  std::string value = text(name, choices.front());
  if (std::find(choices.begin(), choices.end(), value) != choices.end()) return value;
  throw UsageError(
      fmt::format("{} {}: choose one of {}", label(name), excerpt(value), fmt::join(choices, ", ")));
}

std::vector<std::int64_t> Values::layer_counts(const char* name) const {
  if (!has(name)) return {};
  return parse_layer_counts(label(name), text(name, ""));
}

std::vector<std::string> Values::texts(const char* name) const {
  return has(name) ? map_[name].as<std::vector<std::string>>() : std::vector<std::string>();
}

std::map<std::string, std::string> Values::alike(const std::string& command) const {
  std::map<std::string, std::string> all{{"", command}};
  for (const OptionInfo& option : option_table()) {
    const std::string name = long_name(option);
    if (option.ranks == Ranks::kEachItsOwn || !has(name.c_str())) continue;
    if (option.argument == nullptr) {
      all[name] = flag(name.c_str()) ? "true" : "false";
    } else if (option.repeats) {
      all[name] = fmt::format("{}", fmt::join(texts(name.c_str()), fmt::format(" --{} ", name)));
    } else {
      all[name] = text(name.c_str(), "");
    }
  }
  return all;
}

}  // namespace weightcast
