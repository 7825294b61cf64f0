#include "model/expert_placement.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "core/error.hpp"
#include "core/hash.hpp"
#include "model/sharding.hpp"

namespace weightcast {

namespace {

void require_whole(const std::vector<std::int64_t>& slots, std::int64_t layer, std::int64_t experts,
                   const std::string& option) {
  std::vector<bool> found(static_cast<std::size_t>(experts));
  for (const std::int64_t expert : slots) {
    if (expert < 0 || expert >= experts) {
      throw UsageError(fmt::format("{}: a slot of layer {} holds expert {}, but the model has {}", option,
                                   layer, expert, experts));
    }
    found[static_cast<std::size_t>(expert)] = true;
  }
  const auto missing = std::find(found.begin(), found.end(), false);
  if (missing == found.end()) return;
  throw UsageError(
      fmt::format("{}: no slot of layer {} holds expert {}", option, layer, missing - found.begin()));
}

}  // namespace

std::vector<std::int64_t> ExpertPlacement::experts_on(std::int64_t layer, std::int64_t ep,
                                                      std::int64_t ep_rank, std::int64_t experts,
                                                      const std::string& option) const {
  std::vector<std::int64_t> slots;
  if (contiguous()) {
    slots.resize(static_cast<std::size_t>(experts));
    std::iota(slots.begin(), slots.end(), std::int64_t{0});
  } else if (layer < static_cast<std::int64_t>(experts_of_slots.size())) {
    slots = experts_of_slots[static_cast<std::size_t>(layer)];
  }
  require_whole(slots, layer, experts, option);
  const auto count = static_cast<std::int64_t>(slots.size());
  require_divides(option, "ep", ep,
                  fmt::format("the {} of layer {}", contiguous() ? "experts" : "expert slots", layer), count);
  const auto first = slots.begin() + ep_rank * (count / ep);
  return {first, first + count / ep};
}

std::string ExpertPlacement::fingerprint() const {
  if (contiguous()) return "contiguous";
  Hasher hasher;
  for (const std::vector<std::int64_t>& slots : experts_of_slots) {
    hasher.add(slots.size());
    for (const std::int64_t expert : slots) hasher.add(expert);
  }
  return fmt::format("{:016x}", hasher.digest());
}

}  // namespace weightcast
