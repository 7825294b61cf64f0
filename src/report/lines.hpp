#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace weightcast {

/// What reports are written for, and help and progress where nothing says how wide a line may be.
inline constexpr std::size_t kLineWidth = 80;

/// How many characters a text has, which a terminal shows side by side.
std::size_t width_of(std::string_view text);

/// At most that many characters of a text.
std::string_view first_characters(std::string_view text, std::size_t most);

/// How wide a line may be where `descriptor` leads: $COLUMNS if it is a sensible number, else the width of
/// the terminal, else kLineWidth.
std::size_t line_width(int descriptor);

/// A text, which may have lines, in lines of at most `width` characters: broken at blanks, what continues a
/// line begins with `indent`. A word that is longer stays whole. Ends as `text` does.
std::string wrapped(std::string_view text, std::size_t width = kLineWidth, std::string_view indent = "");

}  // namespace weightcast
