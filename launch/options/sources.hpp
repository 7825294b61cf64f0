#pragma once

#include <string>
#include <variant>
#include <vector>

#include "launch/options/values.hpp"

namespace weightcast {

/// What was asked for in place of the command.
enum class Asked : std::uint8_t { kHelp, kVersion };

/// Reads the values of a command's options from the command line (argv[1] is the command), from variables
/// (`WEIGHTCAST_BUCKET_SIZE`) and from `--config FILE`, the first of which counts. Throws UsageError naming
/// the place of what is wrong. `notes` receives lines for the log.
std::variant<Values, Asked> read_values(int argc, const char* const* argv, std::vector<std::string>& notes);

}  // namespace weightcast
