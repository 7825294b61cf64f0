#pragma once

#include <cstddef>
#include <cstdint>

#include "client/export.hpp"

namespace weightcast::client {

/// Shared memory of that name, made here; null, having called fail(), when the system refuses.
void* make_memory(const weightcast_export& e, const char* name, std::int64_t bytes);

/// The same without memory behind it but what is written: there must be room for `limit` bytes of it now.
void* make_sparse_memory(const weightcast_export& e, const char* name, std::int64_t bytes,
                         std::int64_t limit);

/// Makes the control block. It is given its name last, when it is locked: nobody may take it for a dead
/// exporter's. Returns a code, having called fail().
int make_block(weightcast_export& e);

/// Takes away the memory of a dead exporter. The control block goes last, and only behind all the rest: by it
/// whoever comes next finds what is left.
void remove_memory(std::uint64_t generation);
/// The same for an export of this process.
void remove_memory(const weightcast_export& e);

/// Takes away what dead exporters of this user have left in memory, those that died before they had
/// published, too.
void remove_what_is_dead();

}  // namespace weightcast::client
