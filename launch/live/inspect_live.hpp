#pragma once

#include <string>

#include "launch/files/output_file.hpp"

namespace weightcast {

/// `inspect live:DIR`: what trainers and engines have published in a folder, what those of this host are
/// doing, and which version was committed last. Disturbs none of them. Throws IoError when there is no such
/// folder, InputError when it has no manifest and, once all is printed, when one is wrong. `json` may be
/// null.
void inspect_live(const std::string& directory, OutputFile* json);

}  // namespace weightcast
