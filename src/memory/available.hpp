#pragma once

#include <cstdint>
#include <filesystem>

namespace weightcast {

/// Bytes of host memory that this node can still hand out, to all its ranks together: the least of what the
/// kernel calls available and what the control group of this process and every one around it may still take.
/// `root` is where /proc and /sys are.
std::int64_t available_node_bytes(const std::filesystem::path& root = "/");

/// Bytes that this process alone can still map: what its address-space limit leaves.
std::int64_t available_process_bytes();

}  // namespace weightcast
