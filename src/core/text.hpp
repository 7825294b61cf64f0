#pragma once

#include <string>
#include <string_view>

namespace weightcast {

/// Text from a file, a path or an option, made fit for a terminal and for one line: control characters (line
/// breaks and tabs included), characters that nobody sees or that change the direction of writing, and bytes
/// that are no UTF-8 appear as `\n`, `\x1b` or `\u202e`. All other text stays as it is, so that doing it
/// twice changes nothing.
std::string printable(std::string_view text);

/// Text that is UTF-8: bytes that are none appear as `\xff`.
std::string utf8(std::string_view text);

/// Where the first byte is that belongs to no character of UTF-8; npos where there is none.
std::size_t first_no_utf8(std::string_view text);

/// The text of a JSON file in which characters that printable() does not let through are written as `\u009b`.
/// JSON has such characters in strings alone, where both forms mean the same.
std::string printable_json(std::string_view json);

/// The first character of a text, quoted, and by its number where it is none of ASCII: `'"'`, `'“' (U+201C)`.
std::string first_character(std::string_view text);

/// The beginning of such a text, at most 80 bytes, for a message about it.
std::string excerpt(std::string_view text);

/// A message as the one line that is shown: printable, of every run without a blank (a path, a name) that is
/// longer than 400 bytes the beginning and the end, and so of a line that is longer than 4,000. What a
/// message quotes may be of any length, and the remedy stands behind it. Doing it twice changes nothing.
std::string one_line(std::string_view message);

}  // namespace weightcast
