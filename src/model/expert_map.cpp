#include "model/expert_map.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

#include "core/error.hpp"
#include "core/text.hpp"
#include "model/map_fields.hpp"

namespace weightcast {

namespace {

using nlohmann::json;

constexpr std::int64_t kFormat = 1;
constexpr const char* kMapRemedy = "write the map anew with weightcast balance";

[[noreturn]] void refuse(const std::string& where, const std::string& what) {
  throw InputError(fmt::format("{}: {}; {}", where, what, kMapRemedy));
}

/// The experts in the slots of a layer.
std::vector<std::int64_t> read_slots(const json& list, const ExpertMap& map, std::int64_t layer) {
  const std::string where = fmt::format("{}: layer {}", map.origin, layer);
  if (!list.is_array()) refuse(where, "is no list of the experts in its slots");
  if (list.size() != static_cast<std::size_t>(map.slots)) {
    refuse(where, fmt::format("has {} slots, but 'slots' is {}", list.size(), map.slots));
  }
  std::vector<std::int64_t> slots;
  slots.reserve(list.size());
  std::vector<bool> found(static_cast<std::size_t>(map.experts));
  for (const json& value : list) {
    if (!is_whole_number(value) || value.get<std::int64_t>() >= map.experts) {
      refuse(fmt::format("{}, slot {}", where, slots.size()),
             fmt::format("holds {}, which is no expert: 'experts' is {}, and the first is expert 0",
                         excerpt(value.dump()), map.experts));
    }
    slots.push_back(value.get<std::int64_t>());
    found[static_cast<std::size_t>(slots.back())] = true;
  }
  const auto missing = std::find(found.begin(), found.end(), false);
  if (missing != found.end()) {
    refuse(where, fmt::format("none of its {} slots holds expert {}", map.slots, missing - found.begin()));
  }
  return slots;
}

}  // namespace

ExpertMap first_expert_map(std::int64_t layers, std::int64_t experts, std::int64_t slots, std::int64_t ep) {
  ExpertMap map{"", experts, slots, ep, {}};
  std::vector<std::int64_t> layer(static_cast<std::size_t>(slots));
  for (std::int64_t slot = 0; slot < slots; ++slot) layer[static_cast<std::size_t>(slot)] = slot % experts;
  map.placement.experts_of_slots.assign(static_cast<std::size_t>(layers), layer);
  return map;
}

ExpertMap parse_expert_map(const std::string& text, const std::string& origin) {
  const json object = parse_json(text, origin, kMapLimits);
  const MapFields fields(object, origin, kMapRemedy);
  if (fields.number("expert_map") != kFormat) {
    fields.refuse("expert_map", fmt::format("is another format than {}, which this version reads", kFormat));
  }
  ExpertMap map;
  map.origin = origin;
  // Others read JSON's numbers as doubles.
  constexpr std::int64_t kMostEpoch = std::int64_t{1} << 53;
  map.placement.epoch = fields.number("epoch");
  if (map.placement.epoch >= kMostEpoch) fields.refuse("epoch", fmt::format("is not below {}", kMostEpoch));
  const std::int64_t layers = fields.number("layers", 1);
  map.experts = fields.number("experts", 1);
  map.slots = fields.number("slots", 1);
  map.ep = fields.number("ep", 1);
  if (map.slots % map.ep != 0) {
    fields.refuse("ep",
                  fmt::format("is {}, which does not divide the {} slots of a layer", map.ep, map.slots));
  }
  if (map.experts > map.slots) {
    fields.refuse("slots", fmt::format("is {}, too few for {} experts", map.slots, map.experts));
  }
  const json& list = fields.list("experts_of_slots");
  if (list.size() != static_cast<std::size_t>(layers)) {
    fields.refuse("experts_of_slots", fmt::format("has {} layers, but 'layers' is {}", list.size(), layers));
  }
  if (map.slots > kMostMapSlots / layers) {
    fields.refuse("slots", fmt::format("is {}: with {} layers more than {} together", map.slots, layers,
                                       kMostMapSlots));
  }
  for (const json& layer : list)
    map.placement.experts_of_slots.push_back(read_slots(layer, map, map.layers()));
  return map;
}

std::string expert_map_text(const ExpertMap& map) {
  std::string text = kExpertMapBeginning;
  text += fmt::format(
      "{},\n  \"layers\": {},\n  \"experts\": {},\n  \"slots\": {},\n  \"ep\": {},\n"
      "  \"experts_of_slots\": [",
      map.placement.epoch, map.layers(), map.experts, map.slots, map.ep);
  const char* separator = "";
  for (const std::vector<std::int64_t>& slots : map.placement.experts_of_slots) {
    text += fmt::format("{}\n    [{}]", separator, fmt::join(slots, ", "));
    separator = ",";
  }
  return text + "\n  ]\n}\n";
}

}  // namespace weightcast
