#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "model/expert_placement.hpp"

namespace weightcast {

/// The most expert slots of all layers together that a map may have.
inline constexpr std::int64_t kMostMapSlots = std::int64_t{1} << 24;

/// A placement with its sizes, as a file says it: every layer has `slots` slots on `ep` ranks and `experts`
/// experts, each of which sits in at least one of its slots.
struct ExpertMap {
  std::string origin;  ///< the file
  std::int64_t experts = 0;
  std::int64_t slots = 0;
  std::int64_t ep = 1;
  ExpertPlacement placement = {};

  std::int64_t layers() const { return static_cast<std::int64_t>(placement.experts_of_slots.size()); }
};

/// The map that engines begin with: slot p of every layer holds expert p mod `experts`. Epoch 0.
ExpertMap first_expert_map(std::int64_t layers, std::int64_t experts, std::int64_t slots, std::int64_t ep);

/// Reads a map in JSON, as expert_map_text() writes it. Throws InputError that names `origin`, the layer and
/// the slot, and says what to do: fields that are missing or of another type, other numbers of layers or
/// slots than the map's own fields say, slots that cannot be divided by ep, a slot that holds no expert's
/// number, an expert that no slot holds. The work is bounded by the length of the text.
ExpertMap parse_expert_map(const std::string& text, const std::string& origin);

/// How every map's text begins.
inline constexpr const char* kExpertMapBeginning = "{\n  \"expert_map\": 1,\n  \"epoch\": ";

/// The text of a map, one line a layer.
std::string expert_map_text(const ExpertMap& map);

}  // namespace weightcast
