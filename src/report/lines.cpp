#include "report/lines.hpp"

#include <sys/ioctl.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>

namespace weightcast {

namespace {

constexpr std::size_t kLeastWidth = 20;
constexpr std::size_t kMostWidth = 1000;

/// One line without its end.
std::string wrapped_line(std::string_view line, std::size_t width, std::string_view indent) {
  std::string text;
  std::size_t used = 0;  // of the last line of `text`
  while (!line.empty()) {
    // A word with the blanks in front of it, which stay unless the line is broken there.
    const std::size_t begin = std::min(line.find_first_not_of(' '), line.size());
    const std::size_t end = std::min(line.find(' ', begin), line.size());
    const std::string_view word = line.substr(begin, end - begin);
    const bool first = text.empty();
    if (!first && !word.empty() && used + begin + width_of(word) > width) {
      text.append("\n").append(indent).append(word);
      used = width_of(indent) + width_of(word);
    } else {
      text += line.substr(0, end);
      used += begin + width_of(word);
    }
    line.remove_prefix(end);
  }
  return text;
}

}  // namespace

std::size_t width_of(std::string_view text) {
  // Of UTF-8 the bytes that begin a character.
  return static_cast<std::size_t>(std::ranges::count_if(
      text, [](char byte) { return (static_cast<unsigned char>(byte) & 0xc0U) != 0x80U; }));
}

std::string_view first_characters(std::string_view text, std::size_t most) {
  std::size_t end = 0;
  for (std::size_t seen = 0; end < text.size(); ++end) {
    seen += width_of(text.substr(end, 1));
    if (seen > most) break;
  }
  return text.substr(0, end);
}

std::size_t line_width(int descriptor) {
  std::size_t width = 0;
  if (const char* const variable = std::getenv("COLUMNS")) {
    const std::string_view text(variable);
    const auto [rest, status] = std::from_chars(text.data(), text.data() + text.size(), width);
    if (status != std::errc() || rest != text.data() + text.size()) width = 0;
  }
  winsize size{};
  if (width == 0 && ::ioctl(descriptor, TIOCGWINSZ, &size) == 0) width = size.ws_col;
  return width == 0 ? kLineWidth : std::clamp(width, kLeastWidth, kMostWidth);
}

std::string wrapped(std::string_view text, std::size_t width, std::string_view indent) {
  std::string lines;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    lines += wrapped_line(text.substr(0, end), width, indent);
    if (end == std::string_view::npos) break;
    lines += '\n';
    text.remove_prefix(end + 1);
  }
  return lines;
}

}  // namespace weightcast
