#pragma once

#include <string>
#include <vector>

namespace weightcast {

/// What was done about exporters that are dead, a line each.
struct Cleaning {
  std::vector<std::string> removed;
  std::vector<std::string> kept;  ///< what may be a dead one's, and why it was not touched
};

/// Removes the manifests in a folder, and the shared memory, of exporters of this host and user that are
/// dead; and such memory in /dev/shm whose manifest is elsewhere or gone. Of one that lives, or of which that
/// cannot be known from here, nothing is touched. Throws IoError when there is no such folder, or when the
/// system refuses.
Cleaning remove_dead_exporters(const std::string& directory);

}  // namespace weightcast
