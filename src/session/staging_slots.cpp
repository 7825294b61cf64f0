#include "session/staging_slots.hpp"

namespace weightcast {

StagingSlots::StagingSlots(const std::vector<bool>& staged, std::size_t slots) : uses_(staged.size()) {
  std::vector<std::size_t> last(slots, kNone);  // bucket of each slot
  std::size_t next = 0;
  for (std::size_t k = 0; k < staged.size(); ++k) {
    if (!staged[k]) continue;
    uses_[k] = {next, last[next]};
    last[next] = k;
    next = (next + 1) % slots;
  }
}

}  // namespace weightcast
