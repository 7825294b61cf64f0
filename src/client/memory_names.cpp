#include "client/memory_names.hpp"

#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstring>

namespace weightcast::client {

void name_of_memory(char* name, std::size_t size, std::int64_t user, std::uint64_t generation,
                    const char* what) {
  std::snprintf(name, size, "/weightcast-%" PRId64 "-%016" PRIx64 "-%s", user, generation, what);
}

bool is_own_block(const char* file, std::uint64_t* generation) {
  std::int64_t user = 0;
  if (std::sscanf(file, "weightcast-%" SCNd64 "-%16" SCNx64, &user, generation) != 2) return false;
  char name[64];
  name_of_memory(name, sizeof name, ::getuid(), *generation, "control");
  // As it is written, so that two names are two exporters. Names of memory begin with a slash.
  return std::strcmp(file, name + 1) == 0;
}

}  // namespace weightcast::client
