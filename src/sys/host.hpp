#pragma once

#include <string>

namespace weightcast {

/// What this host calls itself; `unknown host` when the system does not say.
std::string this_host();

}  // namespace weightcast
