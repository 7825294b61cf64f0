#include "core/text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <iterator>

namespace weightcast {

namespace {

/// One character of UTF-8 and how many bytes it takes; 0 bytes where there is none.
struct Decoded {
  std::uint32_t character = 0;
  std::size_t bytes = 0;
};

Decoded decode(std::string_view text) {
  const auto byte = [&](std::size_t i) {
    return static_cast<std::uint32_t>(static_cast<unsigned char>(text[i]));
  };
  const std::uint32_t first = byte(0);
  if (first < 0x80) return {first, 1};
  const std::size_t count = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < count) return {};
  std::uint32_t character = first & (0x7fU >> count);
  for (std::size_t i = 1; i < count; ++i) {
    if ((byte(i) & 0xc0U) != 0x80U) return {};
    character = character << 6U | (byte(i) & 0x3fU);
  }
  // Not the shortest form, half of a pair, or beyond Unicode.
  constexpr std::uint32_t kLeastOf3 = 0x800;
  constexpr std::uint32_t kLeastOf4 = 0x10000;
  const bool longer = (count == 3 && character < kLeastOf3) || (count == 4 && character < kLeastOf4);
  const bool half = character >= 0xd800 && character < 0xe000;
  return longer || half || character > 0x10ffff ? Decoded{} : Decoded{character, count};
}

bool is_control(std::uint32_t c) {
  return c < 0x20 || (c >= 0x7f && c < 0xa0);
}

/// Whether nobody sees the character, or it changes how others are seen: format characters (among them marks
/// of direction, line and paragraph separators), fillers, variation selectors, tags. Source: Unicode's
/// general categories Cf, Zl and Zp, and its property Default_Ignorable_Code_Point.
bool misleads(std::uint32_t c) {
  struct Range {
    std::uint32_t first;
    std::uint32_t last;
  };
  static constexpr Range kRanges[] = {
      {0xad, 0xad},       {0x34f, 0x34f},     {0x600, 0x605},     {0x61c, 0x61c},     {0x6dd, 0x6dd},
      {0x70f, 0x70f},     {0x890, 0x891},     {0x8e2, 0x8e2},     {0x115f, 0x1160},   {0x17b4, 0x17b5},
      {0x180b, 0x180f},   {0x200b, 0x200f},   {0x2028, 0x202e},   {0x2060, 0x206f},   {0x3164, 0x3164},
      {0xfe00, 0xfe0f},   {0xfeff, 0xfeff},   {0xffa0, 0xffa0},   {0xfff0, 0xfffb},   {0x110bd, 0x110bd},
      {0x110cd, 0x110cd}, {0x13430, 0x1343f}, {0x1bca0, 0x1bca3}, {0x1d173, 0x1d17a}, {0xe0000, 0xe0fff}};
  return std::any_of(std::begin(kRanges), std::end(kRanges),
                     [&](const Range& range) { return c >= range.first && c <= range.last; });
}

/// `\x1b`, `\u202e`, `\U000e0041`
std::string escaped(std::uint32_t c) {
  if (c < 0x100) return fmt::format("\\x{:02x}", c);
  return c < 0x10000 ? fmt::format("\\u{:04x}", c) : fmt::format("\\U{:08x}", c);
}

/// As JSON writes it: beyond 16 bits as two halves.
std::string escaped_in_json(std::uint32_t c) {
  if (c < 0x10000) return fmt::format("\\u{:04x}", c);
  const std::uint32_t rest = c - 0x10000;
  return fmt::format("\\u{:04x}\\u{:04x}", 0xd800 + (rest >> 10U), 0xdc00 + (rest & 0x3ffU));
}

/// `text` with what `replace` gives for its characters, and for the bytes that are none; empty: as it is.
template <typename Replace>
std::string replaced(std::string_view text, Replace replace) {
  std::string result;
  result.reserve(text.size());
  while (!text.empty()) {
    const Decoded next = decode(text);
    const std::size_t bytes = next.bytes == 0 ? 1 : next.bytes;
    const std::string other = replace(next, static_cast<unsigned char>(text[0]));
    result += other.empty() ? text.substr(0, bytes) : std::string_view(other);
    text.remove_prefix(bytes);
  }
  return result;
}

/// `at`, or where the character begins that it is amid.
std::size_t character_before(std::string_view text, std::size_t at) {
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xc0U) == 0x80U) --at;
  return at;
}

/// A text of at most that many bytes: of a longer one three parts of the beginning and one of the end.
std::string without_middle(std::string_view text, std::size_t most) {
  constexpr std::string_view kGap = "…";
  if (text.size() <= most) return std::string(text);
  const std::size_t end = (most - kGap.size()) / 4;
  const std::string_view last = text.substr(character_before(text, text.size() - end));
  return fmt::format("{}{}{}", text.substr(0, character_before(text, most - kGap.size() - last.size())), kGap,
                     last);
}

}  // namespace

std::string printable(std::string_view text) {
  return replaced(text, [](const Decoded& next, unsigned char byte) -> std::string {
    if (next.bytes == 0) return escaped(byte);
    if (next.character == '\n') return "\\n";
    if (next.character == '\r') return "\\r";
    if (next.character == '\t') return "\\t";
    return is_control(next.character) || misleads(next.character) ? escaped(next.character) : "";
  });
}

std::string utf8(std::string_view text) {
  return replaced(text, [](const Decoded& next, unsigned char byte) {
    return next.bytes == 0 ? escaped(byte) : std::string();
  });
}

std::size_t first_no_utf8(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t bytes = decode(text.substr(at)).bytes;
    if (bytes == 0) return at;
    at += bytes;
  }
  return std::string_view::npos;
}

std::string printable_json(std::string_view json) {
  return replaced(json, [](const Decoded& next, unsigned char /*byte*/) -> std::string {
    const std::uint32_t c = next.character;
    const bool raw = next.bytes > 0 && c >= 0x7f && (is_control(c) || misleads(c));
    return raw ? escaped_in_json(c) : "";
  });
}

std::string first_character(std::string_view text) {
  const Decoded first = decode(text);
  const std::string shown = printable(text.substr(0, std::max<std::size_t>(first.bytes, 1)));
  return first.character < 0x80 ? fmt::format("'{}'", shown)
                                : fmt::format("'{}' (U+{:04X})", shown, first.character);
}

std::string excerpt(std::string_view text) {
  constexpr std::size_t kMost = 80;
  if (text.size() <= kMost) return printable(text);
  return printable(text.substr(0, character_before(text, kMost))) + "…";
}

std::string one_line(std::string_view message) {
  constexpr std::size_t kMostOfAWord = 400;
  constexpr std::size_t kMostOfALine = 4000;
  const std::string whole = printable(message);
  std::string line;
  for (std::size_t at = 0; at < whole.size();) {
    const std::size_t end = std::min(whole.find(' ', at), whole.size());
    line += without_middle(std::string_view(whole).substr(at, end - at), kMostOfAWord);
    if (end < whole.size()) line += ' ';
    at = end + 1;
  }
  return without_middle(line, kMostOfALine);
}

}  // namespace weightcast
