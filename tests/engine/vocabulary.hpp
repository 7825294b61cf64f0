#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace weightcast::engine {

/// Tokens as one line of printable ASCII. A vocabulary of 259 is pad, begin, end and then the 256 bytes; line
/// ends, tabs, backslashes and other unprintable bytes are escaped as in C. Tokens of any other vocabulary
/// are shown as numbers.
std::string printable_text(std::span<const std::int64_t> ids, std::int64_t vocab);

}  // namespace weightcast::engine
