#pragma once

#include <string>

#include "launch/files/output_file.hpp"
#include "launch/options.hpp"

namespace weightcast {

/// `verify live:DIR`: compares what the engines of this host serve with the source, byte for byte. They go on
/// meanwhile. Throws VerifyError where they differ; InputError when an engine holds no version, when ranks
/// are missing or serve several versions, or have not published what the options' layout has; IoError when
/// one is in an update, or has begun one meanwhile, and, once all others are compared, when some are on other
/// hosts. `json` may be null.
void verify_live(const std::string& directory, const Options& options, OutputFile* json);

}  // namespace weightcast
