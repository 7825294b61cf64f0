#include "core/json_text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/text.hpp"

namespace weightcast {

namespace {

using nlohmann::json;

/// `line 3, column 7` of a byte of the text.
std::string place_of(std::string_view text, std::size_t at) {
  at = std::min(at, text.size());
  const std::string_view before = text.substr(0, at);
  const auto line = 1 + std::count(before.begin(), before.end(), '\n');
  const std::size_t start = before.rfind('\n') + 1;  // npos + 1 is 0
  return fmt::format("line {}, column {}", line, at - start + 1);
}

/// Why the text is no JSON at byte `at`, where the parser gave up.
std::string reason_at(std::string_view text, std::size_t at) {
  if (text.find_first_not_of(" \t\r\n", at) == std::string_view::npos) {
    return "the text ends before its object does; it was cut off, copy it again";
  }
  const char c = text[at];
  if (c == '/' || c == '#') return "a comment; JSON has none, remove it";
  const std::size_t before = text.find_last_not_of(" \t\r\n", at == 0 ? std::string_view::npos : at - 1);
  const bool closes = c == '}' || c == ']';
  if (closes && at > 0 && before != std::string_view::npos && text[before] == ',') {
    return fmt::format("a comma before '{}'; remove it", c);
  }
  if (c == '\'') return "a text in single quotes; write double quotes";
  struct Word {
    std::string_view written;
    const char* json;
  };
  static constexpr std::array<Word, 3> kPython{{{"True", "true"}, {"False", "false"}, {"None", "null"}}};
  for (const Word& word : kPython) {
    // The parser gives up within the word, or before it.
    const std::size_t start = text.find_last_not_of("TrueFalsNo", at);
    if (text.substr(start + 1).starts_with(word.written)) {
      return fmt::format("'{}'; JSON writes {}", word.written, word.json);
    }
  }
  const std::string character = first_character(text.substr(at));
  return fmt::format("{} is not expected{}", character,
                     static_cast<unsigned char>(c) < 0x80 ? "" : "; type it anew, as a plain quote or blank");
}

/// Walks through a text without keeping it, and stops at the first thing that is not allowed.
class Checker final : public nlohmann::json_sax<json> {
 public:
  Checker(std::string_view text, const JsonLimits& limits) : text_(text), limits_(limits) {}

  /// What was found, as a sentence without subject; empty when all is well.
  const std::string& fault() const { return fault_; }

  bool start_object(std::size_t /*elements*/) override { return enter(); }
  bool start_array(std::size_t /*elements*/) override { return enter(); }
  bool end_object() override { return leave(); }
  bool end_array() override { return leave(); }
  bool key(std::string& name) override {
    if (!limits_.unique_names || names_.back().insert(name).second) return true;
    fault_ = fmt::format("'{}' occurs twice in one object", printable(name));
    return false;
  }
  bool null() override { return count(); }
  bool boolean(bool /*value*/) override { return count(); }
  bool number_integer(json::number_integer_t /*value*/) override { return count(); }
  bool number_unsigned(json::number_unsigned_t /*value*/) override { return count(); }
  bool number_float(json::number_float_t /*value*/, const std::string& /*text*/) override { return count(); }
  bool string(std::string& /*value*/) override { return count(); }
  bool binary(json::binary_t& /*value*/) override { return count(); }
  bool parse_error(std::size_t position, const std::string& /*token*/,
                   const json::exception& error) override {
    const std::size_t at = position > 0 ? position - 1 : 0;
    const bool overflow = error.id == kNumberOverflow;
    fault_ = fmt::format("not JSON at {}: {}", place_of(text_, at),
                         overflow ? "a number is too large" : reason_at(text_, at));
    return false;
  }

 private:
  static constexpr int kNumberOverflow = 406;  // nlohmann-json's number for it

  bool count() {
    if (++values_ <= limits_.values) return true;
    fault_ = fmt::format("holds more than {} values, which no such file needs", limits_.values);
    return false;
  }
  bool enter() {
    if (names_.size() == limits_.depth) {
      fault_ = fmt::format("is nested more than {} levels deep, which no such file is", limits_.depth);
      return false;
    }
    names_.emplace_back();
    return count();
  }
  bool leave() {
    names_.pop_back();
    return true;
  }

  std::string_view text_;
  const JsonLimits& limits_;
  std::size_t values_ = 0;
  std::vector<std::unordered_set<std::string>> names_;  // of the objects and arrays that are open
  std::string fault_;
};

/// What the text's encoding is called where it is not UTF-8; empty where it may be.
std::string_view other_encoding(std::string_view text) {
  using namespace std::string_view_literals;
  if (text.starts_with("\xff\xfe\0\0"sv) || text.starts_with("\0\0\xfe\xff"sv)) return "UTF-32";
  if (text.starts_with("\xff\xfe") || text.starts_with("\xfe\xff")) return "UTF-16";
  // Without the mark that says so, a '{' of two or four bytes gives it away.
  if (text.substr(0, 4).find('\0') != std::string_view::npos) return "UTF-16 or UTF-32";
  return "";
}

/// The text with Python's numbers in quotes. Lines and columns behind one on its line move by two.
std::string with_quoted_numbers(std::string_view text) {
  constexpr std::array<std::string_view, 3> kNumbers{"-Infinity", "Infinity", "NaN"};
  std::string result;
  result.reserve(text.size());
  bool quoted = false;
  for (std::size_t at = 0; at < text.size();) {
    if (quoted && text[at] == '\\') {
      result += text.substr(at, 2);
      at += 2;
      continue;
    }
    if (text[at] == '"') quoted = !quoted;
    const auto* const number = std::find_if(kNumbers.begin(), kNumbers.end(), [&](std::string_view name) {
      return !quoted && text.substr(at).starts_with(name);
    });
    if (number == kNumbers.end()) {
      result += text[at++];
      continue;
    }
    result.append("\"").append(*number).append("\"");
    at += number->size();
  }
  return result;
}

}  // namespace

json parse_json(const std::string& text, const std::string& origin, const JsonLimits& limits) {
  const auto refuse = [&](const std::string& why) { throw InputError(fmt::format("{}: {}", origin, why)); };
  if (text.size() > limits.bytes) {
    refuse(fmt::format("{} bytes of JSON; at most {} are read", text.size(), limits.bytes));
  }
  if (const std::string_view encoding = other_encoding(text); !encoding.empty()) {
    refuse(fmt::format("the text is {}; save it as UTF-8", encoding));
  }
  const std::string_view content = std::string_view(text).substr(text.starts_with("\xef\xbb\xbf") ? 3 : 0);
  if (content.find_first_not_of(" \t\r\n") == std::string_view::npos) {
    refuse("the text is empty; copy it again");
  }
  if (content.find('\0') != std::string_view::npos)
    refuse("a byte 0 in the text; it is damaged, copy it again");
  const std::string strict = limits.python_numbers ? with_quoted_numbers(content) : std::string(content);
  Checker checker(strict, limits);
  if (!json::sax_parse(strict, &checker)) refuse(checker.fault());
  json parsed = json::parse(strict, nullptr, false);
  if (!parsed.is_object()) refuse("no JSON object; it must begin with '{'");
  return parsed;
}

}  // namespace weightcast
