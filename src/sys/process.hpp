#pragma once

#include <cstdint>

namespace weightcast {

/// Whether there is a process of that number that has not ended: one whose parent has yet to hear of its end
/// has no memory and no locks any more.
bool is_running(std::int64_t process);

}  // namespace weightcast
