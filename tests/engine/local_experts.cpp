#include "engine/local_experts.hpp"

#include <fmt/format.h>

#include <numeric>

#include "core/error.hpp"

namespace weightcast::engine {

LocalExperts::LocalExperts(const RankLayout& layout, std::int64_t layer, std::int64_t experts)
    : slots_of_experts_(static_cast<std::size_t>(experts)) {
  std::vector<std::int64_t> slots(static_cast<std::size_t>(experts));
  std::iota(slots.begin(), slots.end(), std::int64_t{0});
  if (!layout.experts_of_slots.empty()) slots = layout.experts_of_slots.at(static_cast<std::size_t>(layer));
  count_ = divide(static_cast<std::int64_t>(slots.size()), layout.ep_size, "expert slots");
  first_ = layout.ep_rank * count_;
  for (std::size_t slot = 0; slot < slots.size(); ++slot) {
    slots_of_experts_.at(static_cast<std::size_t>(slots[slot])).push_back(static_cast<std::int64_t>(slot));
  }
  for (std::size_t expert = 0; expert < slots_of_experts_.size(); ++expert) {
    if (!slots_of_experts_[expert].empty()) continue;
    throw InputError(fmt::format("no slot of layer {} holds expert {}", layer, expert));
  }
}

std::int64_t LocalExperts::slot_for(std::int64_t expert, std::int64_t token) const {
  const std::vector<std::int64_t>& slots = slots_of_experts_.at(static_cast<std::size_t>(expert));
  const std::int64_t slot = slots[static_cast<std::size_t>(token) % slots.size()];
  return slot >= first_ && slot < first_ + count_ ? slot - first_ : -1;
}

}  // namespace weightcast::engine
