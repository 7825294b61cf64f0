#pragma once

#include <string>
#include <vector>

#include "live/manifest.hpp"

namespace weightcast {

/// What was done about exporters that are dead, a line each.
struct Cleaning {
  std::vector<std::string> removed;
  std::vector<std::string> kept;  ///< what may be a dead one's, and why it was not touched
};

/// Whether the exporter is known to be dead; one that cannot be seen from here may live. Not for a process's
/// own exporters, whose locks the look would drop.
bool is_dead(const Manifest& manifest);

/// Throws IoError when it is.
void require_not_dead(const Manifest& manifest);

/// Removes the manifests in a folder, and the shared memory, of exporters of this host and user that are
/// dead; such memory in /dev/shm whose manifest is elsewhere or gone; and what processes that were killed
/// have left in the folder without its name. Of one that lives, or of which that cannot be known from here,
/// nothing is touched, and what the system refuses to remove does not keep the rest. Throws IoError when
/// there is no such folder.
Cleaning remove_dead_exporters(const std::string& directory);

}  // namespace weightcast
