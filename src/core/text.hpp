#pragma once

#include <string>
#include <string_view>

namespace weightcast {

/// Text from a file, a path or an option, made fit for a terminal and for one line: control characters (line
/// breaks and tabs included), characters that change the direction of writing, and bytes that are no UTF-8
/// appear as `\n`, `\x1b` or `\u202e`. All other text stays as it is, so that doing it twice changes nothing.
std::string printable(std::string_view text);

/// The beginning of such a text, for a message about it.
std::string excerpt(std::string_view text);

}  // namespace weightcast
