#pragma once

#include <cstddef>
#include <vector>

namespace weightcast {

/// Which staging slot each bucket of a rank plan uses in an update, and after which other bucket: in their
/// order they take the slots in turn, past those that need none. A bucket may go into its slot once the one
/// before it there has left.
class StagingSlots {
 public:
  static constexpr std::size_t kNone = ~std::size_t{0};

  /// `staged[k]`: bucket k of the rank plan needs a slot. `slots`: how many there are, at least 1.
  StagingSlots(const std::vector<bool>& staged, std::size_t slots);

  /// Bucket k's slot; kNone where it needs none.
  std::size_t slot(std::size_t k) const { return uses_[k].slot; }
  /// The bucket that used this slot last before bucket k; kNone where bucket k is the first, or needs none.
  std::size_t before(std::size_t k) const { return uses_[k].before; }

 private:
  struct Use {
    std::size_t slot = kNone;
    std::size_t before = kNone;
  };

  std::vector<Use> uses_;  ///< by bucket of the rank plan
};

}  // namespace weightcast
