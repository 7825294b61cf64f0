#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace weightcast {

/// Which experts sit in which slots of the ranks of an expert-parallel group. Slots are counted through the
/// group: rank r of n has slots [r·S/n, (r+1)·S/n) of the S slots of a layer.
struct ExpertPlacement {
  /// Of the map, counted up by whoever changes it.
  std::int64_t epoch = 0;
  /// For each layer of the model the expert in every slot; an expert may be in several. Empty: slot e of
  /// every layer holds expert e.
  std::vector<std::vector<std::int64_t>> experts_of_slots = {};

  bool contiguous() const { return experts_of_slots.empty(); }

  /// The experts in the slots of rank `ep_rank` of `ep` in layer `layer`, of which the model has `experts`.
  /// Throws UsageError, naming `option` and the layer, when the slots cannot be divided evenly, a slot holds
  /// an expert that is none, or an expert has no slot.
  std::vector<std::int64_t> experts_on(std::int64_t layer, std::int64_t ep, std::int64_t ep_rank,
                                       std::int64_t experts, const std::string& option) const;

  /// `contiguous`, or a hash of the map: what shard files record.
  std::string fingerprint() const;
};

}  // namespace weightcast
