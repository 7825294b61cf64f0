#include "launch/options/sources.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/program_options.hpp>
#include <cctype>
#include <set>
#include <sstream>
#include <string_view>
#include <utility>

#include "core/error.hpp"
#include "core/text.hpp"
#include "launch/options/suggestion.hpp"
#include "launch/options/table.hpp"
#include "launch/options/text.hpp"

namespace weightcast {

namespace {

namespace po = boost::program_options;

/// `WEIGHTCAST_BUCKET_SIZE` → `bucket-size`.
std::string option_of_variable(std::string_view variable) {
  std::string name(variable.substr(std::string_view("WEIGHTCAST_").size()));
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return c == '_' ? '-' : static_cast<char>(std::tolower(c)); });
  return name;
}

bool truth(std::string_view name, const std::string& value) {
  if (value == "1" || value == "true" || value == "on" || value == "yes") return true;
  if (value == "0" || value == "false" || value == "off" || value == "no") return false;
  throw UsageError(
      fmt::format("{}: '{}' is neither true nor false; write one of them", name, excerpt(value)));
}

/// Adds one option from the environment or a file; `where` names it in messages.
void add_parsed(po::parsed_options& parsed, const OptionInfo& option, const std::string& value,
                const std::string& where) {
  po::option entry;
  entry.string_key = long_name(option);
  if (option.argument == nullptr) {
    entry.value = {truth(where, value) ? "true" : "false"};
  } else {
    entry.value = {value};
  }
  parsed.options.push_back(std::move(entry));
}

/// The lines of a variable of an option that may repeat: every other character may be part of a value.
std::vector<std::string> lines_of(const std::string& value) {
  std::vector<std::string> lines;
  std::istringstream text(value);
  for (std::string line; std::getline(text, line);) {
    if (!line.empty()) lines.push_back(line);
  }
  if (lines.empty()) lines.push_back(value);
  return lines;
}

/// Variables that are no options: environment modules set the first two for every program, `learn` and the
/// Python package read the others.
constexpr std::array<std::string_view, 7> kOthers{
    "version", "help", "client", "python", "vllm-version", "sglang-version", "megatron-version"};

po::parsed_options parse_environment(const po::options_description& description, unsigned command,
                                     std::vector<std::string>& notes, Origins& origins) {
  po::parsed_options parsed(&description);
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string_view entry = *variable;
    const std::size_t equals = entry.find('=');
    const std::string_view name = entry.substr(0, equals);
    // One without a value is nobody's variable, though a program may have been started with it.
    if (equals == std::string_view::npos || !name.starts_with("WEIGHTCAST_")) continue;
    const std::string option_name = option_of_variable(name);
    if (std::ranges::find(kOthers, option_name) != kOthers.end()) continue;
    const OptionInfo* option = find_option(option_name, command);
    if (option == nullptr) {
      notes.push_back(fmt::format("environment: {} is no option and is ignored", excerpt(name)));
    } else if ((option->commands & command) != 0) {
      const auto [other, fresh] = origins.emplace(option_name, name);
      if (!fresh)
        throw UsageError(fmt::format("{} and {} are one option; unset one of them", other->second, name));
      const std::string value(entry.substr(name.size() + 1));
      for (const std::string& one : option->repeats ? lines_of(value) : std::vector{value}) {
        add_parsed(parsed, *option, one, std::string(name));
      }
    }
  }
  return parsed;
}

/// Where a `#` begins a value or stands behind a blank in it; npos where none does.
std::size_t find_comment(std::string_view value) {
  for (std::size_t at = value.find('#'); at != std::string_view::npos; at = value.find('#', at + 1)) {
    if (at == 0 || value[at - 1] == ' ' || value[at - 1] == '\t') return at;
  }
  return std::string_view::npos;
}

po::parsed_options parse_file(const po::options_description& description, unsigned command,
                              const std::string& path, const std::string& label, Origins& origins) {
  std::string content = options_text(path, label);
  constexpr std::string_view kMark = "\xef\xbb\xbf";  // that some editors put in front of UTF-8
  if (content.starts_with(kMark)) content.erase(0, kMark.size());
  std::istringstream file(content);
  po::parsed_options parsed(&description);
  std::string line;
  std::set<std::string> given;
  for (int number = 1; std::getline(file, line); ++number) {
    const auto trim = [](std::string_view text) {
      const std::size_t first = text.find_first_not_of(" \t\r");
      if (first == std::string_view::npos) return std::string();
      return std::string(text.substr(first, text.find_last_not_of(" \t\r") + 1 - first));
    };
    // Comments have lines of their own.
    if (trim(line).empty() || trim(line).front() == '#') continue;
    const std::size_t equals = line.find('=');
    const std::string name = trim(std::string_view(line).substr(0, equals));
    const std::string where = fmt::format("{}:{}: {}", path, number, excerpt(name));
    const OptionInfo* option = find_option(name, command);
    if (name.empty()) throw UsageError(fmt::format("{}:{}: write name = value", path, number));
    if (equals == std::string::npos) throw UsageError(where + ": write name = value");
    if (option == nullptr) throw UsageError(where + ": unknown option; --help lists them");
    if (name == "config") {
      throw UsageError(where + ": a file of options cannot name another one; write that one's lines here");
    }
    if ((option->commands & command) == 0) continue;  // one file may serve several commands
    const std::string value = trim(std::string_view(line).substr(equals + 1));
    if (const std::size_t mark = find_comment(value); mark != std::string::npos) {
      throw UsageError(
          fmt::format("{}: '{}' may be a comment or a part of the value; put a comment on a line of "
                      "its own, and such a value on the command line",
                      where, excerpt(std::string_view(value).substr(mark))));
    }
    if (!given.insert(name).second && !option->repeats) {
      throw UsageError(where + ": a second time in this file; leave one of them out");
    }
    add_parsed(parsed, *option, value, where);
    origins.emplace(name, where);
  }
  return parsed;
}

/// Throws UsageError for a value that is longer than any path or layout can be.
void require_short_values(const Values& values) {
  constexpr std::size_t kMost = 4096;
  const auto require_short = [&](const std::string& subject, const std::string& value) {
    if (value.size() <= kMost) return;
    throw UsageError(
        fmt::format("{}: has {} characters, more than the {} that any value needs; is the right text given?",
                    subject, value.size(), kMost));
  };
  for (const std::string& argument : values.texts("argument")) require_short(excerpt(argument), argument);
  for (const OptionInfo& option : option_table()) {
    const std::string name = long_name(option);
    if (option.argument == nullptr || !values.has(name.c_str())) continue;
    const std::vector<std::string> all =
        option.repeats ? values.texts(name.c_str()) : std::vector{values.text(name.c_str(), "")};
    for (const std::string& value : all) require_short(values.label(name), value);
  }
}

/// Throws UsageError where an option has taken the next one for its value, as in `--json --trace t.json`.
void require_own_values(const po::parsed_options& parsed) {
  for (const po::option& option : parsed.options) {
    // The option itself, and its value where that stands behind a blank.
    if (option.original_tokens.size() < 2) continue;
    const std::string& name = option.original_tokens.front();
    const std::string& value = option.original_tokens.back();
    const std::string next = value.substr(0, value.find('='));
    const auto is_next = [&](const OptionInfo& known) { return next == "--" + long_name(known); };
    if (std::ranges::none_of(option_table(), is_next)) continue;
    throw UsageError(fmt::format(
        "{}: its value is missing, for {} is an option itself; write one, or {}={} if that is the value",
        name, next, name, excerpt(value)));
  }
}

/// Of options that say the same thing in two ways the command line's counts, as of two values of one option.
void drop_overridden(po::variables_map& map, const Origins& origins) {
  using Pair = std::pair<const char*, const char*>;
  for (const auto& [one, other] : {Pair{"alloc", "inference"}, Pair{"alloc", "trainers"},
                                   Pair{"alloc", "inference-alloc"}, Pair{"alloc", "trainer-alloc"},
                                   Pair{"inference-alloc", "inference"}, Pair{"trainer-alloc", "trainers"}}) {
    if (map.count(one) == 0 || map.count(other) == 0) continue;
    const bool one_is_weaker = origins.count(one) != 0;
    const bool other_is_weaker = origins.count(other) != 0;
    if (one_is_weaker != other_is_weaker) map.erase(one_is_weaker ? one : other);
  }
}

/// `; did you mean --buffers?` of the options of a command.
std::string close_option(std::string_view typed, unsigned command) {
  std::vector<std::string> texts;
  for (const OptionInfo& option : option_table()) {
    if ((option.commands & command) != 0) texts.push_back("--" + long_name(option));
  }
  const std::vector<std::string_view> names(texts.begin(), texts.end());
  return suggestion(typed, names);
}

}  // namespace

std::variant<Values, Asked> read_values(int argc, const char* const* argv, std::vector<std::string>& notes) {
  const std::string command = argv[1];
  const unsigned bit = bit_of(command);
  po::options_description description = describe(bit);
  description.add_options()("argument", po::value<std::vector<std::string>>(), "");
  po::positional_options_description positional;
  positional.add("argument", -1);
  po::variables_map map;
  Origins origins;
  try {
    using po::command_line_style::allow_guessing;
    const auto parsed = po::command_line_parser(argc - 1, argv + 1)
                            .options(description)
                            .positional(positional)
                            .style(po::command_line_style::unix_style & ~allow_guessing)
                            .run();
    require_own_values(parsed);
    po::store(parsed, map);
    if (map["help"].as<bool>()) {
      return Asked::kHelp;
    }
    if (map["version"].as<bool>()) {
      return Asked::kVersion;
    }
    const po::variables_map from_command_line = map;
    // Whatever is stored first stays: command line, then environment, then file.
    po::store(parse_environment(description, bit, notes, origins), map);
    if (map.count("config") != 0) {
      const std::string label = from_command_line.count("config") != 0 ? "--config" : origins.at("config");
      po::store(parse_file(description, bit, map["config"].as<std::string>(), label, origins), map);
    }
    for (const auto& [name, value] : from_command_line) {
      if (!value.defaulted()) origins.erase(name);
    }
    drop_overridden(map, origins);
    po::notify(map);
  } catch (const po::unknown_option& error) {
    throw UsageError(fmt::format("{}{}; weightcast {} --help lists the options", error.what(),
                                 close_option(error.get_option_name(), bit), command));
  } catch (const po::error& error) {
    throw UsageError(fmt::format("{}; weightcast {} --help lists the options", error.what(), command));
  }
  Values values(std::move(map), std::move(origins));
  require_short_values(values);
  return values;
}

}  // namespace weightcast
