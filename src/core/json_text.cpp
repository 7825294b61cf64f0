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

/// `line 3, column 7` of a byte of the text. Columns are characters, as editors count them.
std::string place_of(std::string_view text, std::size_t at) {
  const std::string_view before = text.substr(0, std::min(at, text.size()));
  const auto line = 1 + std::ranges::count(before, '\n');
  const auto is_first_byte = [](char c) { return (static_cast<unsigned char>(c) & 0xc0U) != 0x80U; };
  const std::string_view in_line = before.substr(before.rfind('\n') + 1);  // npos + 1 is 0
  return fmt::format("line {}, column {}", line, 1 + std::ranges::count_if(in_line, is_first_byte));
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
                     static_cast<unsigned char>(c) < 0x80 ? "; correct the text there, or copy the file again"
                                                          : "; type it anew, as a plain quote or blank");
}

/// Where the last `\uXXXX` before `at` begins that is half of a character; `at` where there is none.
std::size_t half_before(std::string_view text, std::size_t at) {
  constexpr std::size_t kLength = 6;
  const std::size_t last = text.substr(0, at + 1).rfind("\\u");
  if (last == std::string_view::npos) return at;
  const bool follows = last >= kLength && text.substr(last - kLength).starts_with("\\u");
  constexpr std::string_view kFirstHalves = "89abAB";
  const bool is_second = follows && (text[last - 4] == 'd' || text[last - 4] == 'D') &&
                         kFirstHalves.find(text[last - 3]) != std::string_view::npos;
  return is_second ? last - kLength : last;
}

/// A text as the parser is given it: with Python's numbers in quotes.
struct ParserText {
  std::string text;
  std::vector<std::size_t> quotes;  ///< where a quote was added, in order

  /// The place in the original text of a byte of this one.
  std::size_t original(std::size_t at) const {
    return at - static_cast<std::size_t>(std::ranges::lower_bound(quotes, at) - quotes.begin());
  }
};

/// Walks through a text without keeping it, and stops at the first thing that is not allowed.
class Checker final : public nlohmann::json_sax<json> {
 public:
  /// `text` is what was written, `parsed` what the parser reads of it.
  Checker(std::string_view text, const ParserText& parsed, const JsonLimits& limits)
      : text_(text), parsed_(parsed), limits_(limits) {}

  /// What was found, as a sentence without subject; empty when all is well.
  const std::string& fault() const { return fault_; }

  bool start_object(std::size_t /*elements*/) override { return enter(); }
  bool start_array(std::size_t /*elements*/) override { return enter(); }
  bool end_object() override { return leave(); }
  bool end_array() override { return leave(); }
  bool key(std::string& name) override {
    if (!limits_.unique_names || names_.back().insert(name).second) return true;
    fault_ = fmt::format("'{}' occurs twice in one object; remove one of them", excerpt(name));
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
    const std::size_t at = parsed_.original(position > 0 ? position - 1 : 0);
    const std::string_view what = error.what();
    const auto says = [&](std::string_view words) { return what.find(words) != std::string_view::npos; };
    const auto refuse = [&](std::size_t place, const std::string& why) {
      fault_ = fmt::format("not JSON at {}: {}", place_of(text_, place), why);
      return false;
    };
    if (error.id == kNumberOverflow)
      return refuse(at, "a number is too large; write one that a double can hold");
    // The parser notices a wrong byte when it has read the next one.
    if (const std::size_t wrong = first_no_utf8(text_); wrong <= at) {
      return refuse(wrong, fmt::format("the byte {} is no UTF-8 (is the text in Latin-1?); save it as UTF-8",
                                       printable(text_.substr(wrong, 1))));
    }
    if (says("surrogate")) {
      const std::size_t half = half_before(text_, at);
      return refuse(half,
                    fmt::format("{} is half of a character; write the other half behind it, or remove it",
                                printable(text_.substr(half, 6))));
    }
    if (says("must be escaped")) {
      return refuse(at,
                    fmt::format("{} within a text; write \\u{:04x}, or close the text with a quote before it",
                                first_character(text_.substr(at)),
                                static_cast<unsigned>(static_cast<unsigned char>(text_[at]))));
    }
    return refuse(at, reason_at(text_, at));
  }

 private:
  static constexpr int kNumberOverflow = 406;  // nlohmann-json's number for it

  bool count() {
    if (++values_ <= limits_.values) return true;
    fault_ = fmt::format("holds more than {} values, which no such file needs; is it the right one?",
                         limits_.values);
    return false;
  }
  bool enter() {
    if (names_.size() == limits_.depth) {
      fault_ = fmt::format("is nested more than {} levels deep, which no such file is; is it the right one?",
                           limits_.depth);
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
  const ParserText& parsed_;
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
  // Space that was reserved, of which the first byte alone was written.
  if (text.size() >= 8 && text.substr(1, 7).find_first_not_of('\0') == std::string_view::npos) return "";
  // Without the mark that says so, a '{' of two or four bytes gives it away.
  if (text.substr(0, 4).find('\0') != std::string_view::npos) return "UTF-16 or UTF-32";
  return "";
}

ParserText with_quoted_numbers(std::string_view text) {
  constexpr std::array<std::string_view, 3> kNumbers{"-Infinity", "Infinity", "NaN"};
  ParserText parsed;
  std::string& result = parsed.text;
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
    parsed.quotes.push_back(result.size());
    result.append("\"").append(*number);
    parsed.quotes.push_back(result.size());
    result += '"';
    at += number->size();
  }
  return parsed;
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
  const ParserText strict =
      limits.python_numbers ? with_quoted_numbers(content) : ParserText{std::string(content), {}};
  Checker checker(content, strict, limits);
  if (!json::sax_parse(strict.text, &checker)) refuse(checker.fault());
  json parsed = json::parse(strict.text, nullptr, false);
  if (limits.list && !parsed.is_array()) refuse("no JSON list; it must begin with '['");
  if (!limits.list && !parsed.is_object()) refuse("no JSON object; it must begin with '{'");
  return parsed;
}

}  // namespace weightcast
