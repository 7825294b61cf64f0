#pragma once

#include <string_view>

namespace weightcast {

/// Prints what `--help` says of a command, of the program for an empty one.
void print_help(std::string_view command);

}  // namespace weightcast
