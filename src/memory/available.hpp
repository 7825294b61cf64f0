#pragma once

#include <cstdint>

namespace weightcast {

/// Bytes of host memory that this node can still hand out: the least of what the kernel calls available, what
/// the control group of this process may still take, and the process's own address-space limit.
std::int64_t available_host_bytes();

}  // namespace weightcast
