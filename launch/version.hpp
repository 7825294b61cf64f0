#pragma once

#include <string>

namespace weightcast {

/// `weightcast 0.1.0 · HDF5 1.10.8 · Boost 1.74`
std::string version_line();

}  // namespace weightcast
