#pragma once

#include <cstddef>
#include <cstdint>

namespace weightcast::client {

// How exporters' shared memory is called. Used on both sides, as block.hpp.

/// `/weightcast-1000-0123456789abcdef-WHAT`: that of the exporter of that user and generation, after what it
/// is: the number of a segment, or `control`.
void name_of_memory(char* name, std::size_t size, std::int64_t user, std::uint64_t generation,
                    const char* what);

/// Whether a file of that name in /dev/shm is the control block of this user's exporter, of which generation.
bool is_own_block(const char* file, std::uint64_t* generation);

}  // namespace weightcast::client
