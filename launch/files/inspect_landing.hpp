#pragma once

#include "launch/files/output_file.hpp"
#include "model/landing/landing_map.hpp"

namespace weightcast {

/// Prints for which engine and layout a map is, and what it does on each rank; the same as JSON.
void inspect_landing(const LandingMap& map, OutputFile* json);

}  // namespace weightcast
