#pragma once

#include <string>
#include <string_view>

namespace weightcast {

/// Whether `glob` fits all of `name`: `*` stands for any characters, `?` for one, `[0-9]` for one of a set
/// and `[!0-9]` for one that is not in it; every other character stands for itself. Takes at most as many
/// steps as both are long, multiplied.
bool fits_glob(std::string_view glob, std::string_view name);

/// What is wrong with a glob, as the end of a sentence; empty where nothing is.
std::string wrong_in_glob(std::string_view glob);

}  // namespace weightcast
