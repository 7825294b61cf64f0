#pragma once

#include <cstdint>

#include "control/control.hpp"

namespace weightcast {

/// Bytes that a rank is about to allocate.
struct MemoryNeed {
  std::int64_t parameters = 0;
  std::int64_t staging = 0;
  std::int64_t source = 0;

  std::int64_t all() const { return parameters + staging + source; }
};

/// Throws (by agreement) IoError when the ranks of a node together need more than it has left, or a rank more
/// than its address space, with what would need less; `also` stands behind that. Collective.
void require_node_memory(Control& control, const MemoryNeed& need, const char* also);

/// The same of the current GPU, which no other rank has. Collective.
void require_gpu_memory(Control& control, const MemoryNeed& need, const char* also);

}  // namespace weightcast
