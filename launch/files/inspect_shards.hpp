#pragma once

#include <string>

#include "launch/files/output_file.hpp"

namespace weightcast {

/// Prints what the shard files of a folder are together, and each of them; the same as JSON. Throws
/// InputError where they are not one update's.
void inspect_shards(const std::string& directory, OutputFile* json);

}  // namespace weightcast
