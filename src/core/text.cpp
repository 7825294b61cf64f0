#include "core/text.hpp"

#include <fmt/format.h>

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

/// Line and paragraph separators, and marks that turn the direction of what follows.
bool misleads(std::uint32_t c) {
  return c == 0x200e || c == 0x200f || (c >= 0x2028 && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069);
}

}  // namespace

std::string printable(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  while (!text.empty()) {
    const Decoded next = decode(text);
    const std::size_t bytes = next.bytes == 0 ? 1 : next.bytes;
    if (next.bytes == 0) {
      fmt::format_to(std::back_inserter(result), "\\x{:02x}", static_cast<unsigned char>(text[0]));
    } else if (next.character == '\n') {
      result += "\\n";
    } else if (next.character == '\r') {
      result += "\\r";
    } else if (next.character == '\t') {
      result += "\\t";
    } else if (is_control(next.character)) {
      fmt::format_to(std::back_inserter(result), "\\x{:02x}", next.character);
    } else if (misleads(next.character)) {
      fmt::format_to(std::back_inserter(result), "\\u{:04x}", next.character);
    } else {
      result += text.substr(0, bytes);
    }
    text.remove_prefix(bytes);
  }
  return result;
}

std::string excerpt(std::string_view text) {
  constexpr std::size_t kMost = 80;
  if (text.size() <= kMost) return printable(text);
  std::size_t end = kMost;
  // Not amid a character.
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0U) == 0x80U) --end;
  return printable(text.substr(0, end)) + "…";
}

}  // namespace weightcast
