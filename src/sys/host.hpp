#pragma once

#include <string>

namespace weightcast {

/// What this host calls itself; `unknown host` when the system does not say.
std::string this_host();

/// What tells this start of the host from its others; empty when the system does not say.
std::string this_boot();

}  // namespace weightcast
