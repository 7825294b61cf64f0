#include "live/expert_table.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/hash.hpp"

namespace weightcast {

namespace {

[[noreturn]] void refuse(const Manifest& manifest, const std::string& what) {
  throw InputError(
      fmt::format("{}: its table of experts {}; let the engine publish anew with a client of this "
                  "version",
                  manifest.path, what));
}

}  // namespace

ExpertTable::ExpertTable(const Manifest& manifest) : manifest_(manifest) {
  const auto [layers, slots, experts] = manifest.expert_slots;
  const SharedFile file(manifest, manifest.expert_table, Access::kRead);
  mapping_ = file.map(manifest, weightcast_table_bytes(layers, slots, experts));
  const weightcast_expert_table& t = table();
  if (t.magic != WEIGHTCAST_TABLE_MAGIC || t.generation != manifest.generation || t.layers != layers ||
      t.slots != slots || t.experts != experts || t.copies != slots - experts + 1) {
    refuse(manifest, "is none of this publication");
  }
}

const weightcast_expert_table& ExpertTable::table() const {
  return *reinterpret_cast<const weightcast_expert_table*>(mapping_->data());
}

std::vector<std::int64_t> ExpertTable::numbers(std::int64_t& epoch) const {
  const auto [layers, slots, experts] = manifest_.expert_slots;
  const auto* const from = reinterpret_cast<const std::int64_t*>(&table() + 1);
  std::vector<std::int64_t> copy(static_cast<std::size_t>(weightcast_table_numbers(layers, slots, experts)));
  constexpr std::chrono::seconds kPatience{2};
  const auto give_up = std::chrono::steady_clock::now() + kPatience;
  for (;;) {
    const std::uint64_t before = __atomic_load_n(&table().sequence, __ATOMIC_ACQUIRE);
    if (before % 2 == 0) {
      epoch = __atomic_load_n(&table().epoch, __ATOMIC_RELAXED);
      for (std::size_t i = 0; i < copy.size(); ++i) copy[i] = __atomic_load_n(from + i, __ATOMIC_RELAXED);
      __atomic_thread_fence(__ATOMIC_ACQUIRE);
      require_whole(manifest_, *mapping_);
      if (__atomic_load_n(&table().sequence, __ATOMIC_RELAXED) == before) return copy;
    }
    if (std::chrono::steady_clock::now() > give_up) {
      throw IoError(
          fmt::format("{}: its table of experts has been amid a change for {} s; look whether the "
                      "engine lives, and let it say anew where its experts sit (weightcast_place_experts)",
                      manifest_.path, kPatience.count()));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

ExpertMap ExpertTable::read() const {
  const auto [layers, slots, experts] = manifest_.expert_slots;
  const std::int64_t copies = slots - experts + 1;
  ExpertMap map{manifest_.path, experts, slots, 1, {}};
  const std::vector<std::int64_t> all = numbers(map.placement.epoch);
  if (map.placement.epoch < 0 || map.placement.epoch >= std::int64_t{1} << 53) {
    refuse(manifest_, fmt::format("has epoch {}", map.placement.epoch));
  }
  const std::span<const std::int64_t> physical(all);
  const auto logical = physical.subspan(static_cast<std::size_t>(layers * slots));
  const auto counts = logical.subspan(static_cast<std::size_t>(layers * experts * copies));
  const auto at = [](std::span<const std::int64_t> list, std::int64_t i) {
    return list[static_cast<std::size_t>(i)];
  };
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    std::vector<std::int64_t> row;
    std::vector<std::int64_t> found(static_cast<std::size_t>(experts), 0);
    row.reserve(static_cast<std::size_t>(slots));
    for (std::int64_t slot = 0; slot < slots; ++slot) {
      const std::int64_t expert = at(physical, layer * slots + slot);
      if (expert < 0 || expert >= experts) {
        refuse(manifest_,
               fmt::format("has {} in slot {} of layer {}, which is no expert", expert, slot, layer));
      }
      std::int64_t& count = found[static_cast<std::size_t>(expert)];
      const std::int64_t first = (layer * experts + expert) * copies;
      if (count == copies || at(logical, first + count) != slot) {
        refuse(manifest_,
               fmt::format("does not list slot {} of layer {} with its expert {}", slot, layer, expert));
      }
      ++count;
      row.push_back(expert);
    }
    for (std::int64_t expert = 0; expert < experts; ++expert) {
      const std::int64_t count = found[static_cast<std::size_t>(expert)];
      if (count > 0 && at(counts, layer * experts + expert) == count) continue;
      refuse(manifest_, fmt::format("says that expert {} of layer {} is in {} slots, and has it in {}",
                                    expert, layer, at(counts, layer * experts + expert), count));
    }
    map.placement.experts_of_slots.push_back(std::move(row));
  }
  return map;
}

void ExpertTable::write(const ExpertMap& map) const {
  const auto [layers, slots, experts] = manifest_.expert_slots;
  const std::int64_t copies = slots - experts + 1;
  if (map.layers() != layers || map.slots != slots || map.experts != experts) {
    throw InternalError(
        fmt::format("{}: a map of {} layers, {} slots and {} experts does not go into its table of experts",
                    manifest_.path, map.layers(), map.slots, map.experts));
  }
  std::vector<std::int64_t> all(static_cast<std::size_t>(weightcast_table_numbers(layers, slots, experts)),
                                -1);
  const std::span<std::int64_t> physical(all);
  const auto logical = physical.subspan(static_cast<std::size_t>(layers * slots));
  const auto counts = logical.subspan(static_cast<std::size_t>(layers * experts * copies));
  std::ranges::fill(counts, 0);
  const auto at = [](std::span<std::int64_t> list, std::int64_t i) -> std::int64_t& {
    return list[static_cast<std::size_t>(i)];
  };
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    for (std::int64_t slot = 0; slot < slots; ++slot) {
      const std::int64_t expert = map.placement.experts_of_slots.at(static_cast<std::size_t>(layer))
                                      .at(static_cast<std::size_t>(slot));
      at(physical, layer * slots + slot) = expert;
      std::int64_t& count = at(counts, layer * experts + expert);
      at(logical, (layer * experts + expert) * copies + count) = slot;
      ++count;
    }
  }
  const SharedFile file(manifest_, manifest_.expert_table, Access::kWrite);
  const auto mapping = file.map(manifest_, weightcast_table_bytes(layers, slots, experts));
  auto& table = *reinterpret_cast<weightcast_expert_table*>(mapping->data());
  auto* const to = reinterpret_cast<std::int64_t*>(&table + 1);
  const std::uint64_t sequence = __atomic_load_n(&table.sequence, __ATOMIC_RELAXED) | 1;
  __atomic_store_n(&table.sequence, sequence, __ATOMIC_RELAXED);
  __atomic_thread_fence(__ATOMIC_RELEASE);
  __atomic_store_n(&table.epoch, map.placement.epoch, __ATOMIC_RELAXED);
  for (std::size_t i = 0; i < all.size(); ++i) __atomic_store_n(to + i, all[i], __ATOMIC_RELAXED);
  __atomic_store_n(&table.sequence, sequence + 1, __ATOMIC_RELEASE);
  require_whole(manifest_, *mapping);
}

std::int64_t key_of(const ExpertMap& map) {
  Hasher hasher;
  hasher.add(map.placement.epoch).add(map.slots);
  for (const std::vector<std::int64_t>& row : map.placement.experts_of_slots) {
    for (const std::int64_t expert : row) hasher.add(expert);
  }
  return static_cast<std::int64_t>(hasher.digest() >> 1);
}

}  // namespace weightcast
