#include "engine/vocabulary.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <string_view>

namespace weightcast::engine {
namespace {

constexpr std::array<std::string_view, 3> kSpecialTokens = {"<pad>", "<bos>", "<eos>"};
constexpr std::int64_t kByteVocabulary = 256 + static_cast<std::int64_t>(kSpecialTokens.size());

std::string escape(char byte) {
  switch (byte) {
    case '\n':
      return "\\n";
    case '\r':
      return "\\r";
    case '\t':
      return "\\t";
    case '\\':
      return "\\\\";
    default:
      break;
  }
  if (byte >= ' ' && byte <= '~') return {byte};
  return fmt::format("\\x{:02x}", static_cast<unsigned char>(byte));
}

}  // namespace

std::string printable_text(std::span<const std::int64_t> ids, std::int64_t vocab) {
  if (vocab != kByteVocabulary) return fmt::format("tokens {}", fmt::join(ids, " "));
  std::string text;
  for (const std::int64_t id : ids) {
    const auto specials = static_cast<std::int64_t>(kSpecialTokens.size());
    if (id < 0 || id >= vocab) {
      text += fmt::format("<{}>", id);
    } else if (id < specials) {
      text += kSpecialTokens.at(static_cast<std::size_t>(id));
    } else {
      text += escape(static_cast<char>(id - specials));
    }
  }
  return text;
}

}  // namespace weightcast::engine
