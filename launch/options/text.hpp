#pragma once

#include <string>

namespace weightcast {

/// The text of a file of options, or of a pipe (`--config <(…)`) that is written and closed within seconds.
/// Throws IoError for what can be neither: a folder, a device, more than any such text; `label` is what has
/// named the path, an option or a variable.
std::string options_text(const std::string& path, const std::string& label);

}  // namespace weightcast
