#include "model/fitted_placement.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <string_view>
#include <utility>

#include "core/error.hpp"
#include "core/units.hpp"

namespace weightcast {

namespace {

constexpr std::string_view kExperts = ".experts.";

std::vector<std::int64_t> contiguous_slots(std::int64_t experts, std::int64_t slots) {
  std::vector<std::int64_t> layer(static_cast<std::size_t>(slots));
  for (std::int64_t slot = 0; slot < slots; ++slot) layer[static_cast<std::size_t>(slot)] = slot % experts;
  return layer;
}

std::vector<std::int64_t> slots_in_turn(std::int64_t experts, std::int64_t ep) {
  std::vector<std::int64_t> layer;
  for (std::int64_t rank = 0; rank < ep; ++rank) {
    for (std::int64_t expert = rank; expert < experts; expert += ep) layer.push_back(expert);
  }
  return layer;
}

/// The same, without slots where slot e of every layer holds expert e.
ExpertPlacement shortest(ExpertPlacement placement, const ModelLayers& layers) {
  const bool plain = std::ranges::all_of(layers.experts, [&](const ExpertLayer& one) {
    return placement.experts_of_slots[static_cast<std::size_t>(one.layer)] ==
           contiguous_slots(one.experts, one.experts);
  });
  if (plain) placement.experts_of_slots.clear();
  return placement;
}

/// The number of the map's row for the `number`-th layer with experts, or -1 for a draft layer without one.
std::int64_t row_of(const ExpertMap& map, const ModelLayers& layers, std::size_t number) {
  const std::int64_t rows = map.layers();
  const std::int64_t layer = layers.experts[number].layer;
  const auto with_experts = std::ssize(layers.experts);
  const auto own_with_experts =
      std::ranges::count_if(layers.experts, [&](const ExpertLayer& one) { return one.layer < layers.own; });
  if (rows == layers.all || rows == layers.own) {
    const auto number_of = [&](const ExpertLayer& one) { return &one - layers.experts.data(); };
    const bool alike = std::ranges::all_of(
        layers.experts, [&](const ExpertLayer& one) { return one.layer == number_of(one); });
    if (rows == with_experts && !alike) {
      throw InputError(fmt::format(
          "{}: has {}, which may be those of the model without its draft layers or all that have experts; "
          "name a map with a row for each layer of either",
          map.origin, counted(rows, "layer")));
    }
    return layer < rows ? layer : -1;
  }
  if (rows == with_experts || (rows == own_with_experts && rows > 0)) {
    return static_cast<std::int64_t>(number) < rows ? static_cast<std::int64_t>(number) : -1;
  }
  throw InputError(fmt::format(
      "{}: has {}, but the model has {}, {} of them with experts; name a map with a row for each of either",
      map.origin, counted(rows, "layer"), layers.all, with_experts));
}

}  // namespace

ModelLayers model_layers(const Catalog& catalog, std::int64_t own) {
  ModelLayers layers;
  std::map<std::int64_t, std::int64_t> experts;
  for (const Tensor& tensor : catalog.tensors()) {
    layers.all = std::max(layers.all, tensor.layer + 1);
    if (tensor.layer == Tensor::kNone || tensor.name.find(kExperts) == std::string::npos) continue;
    std::int64_t& count = experts[tensor.layer];
    // Those of a layer in one tensor lie along its first dimension.
    count = std::max(count, tensor.expert == Tensor::kNone ? tensor.shape[0] : tensor.expert + 1);
  }
  layers.own = own == 0 ? layers.all : own;
  layers.all = std::max(layers.all, layers.own);
  for (const auto& [layer, count] : experts) layers.experts.push_back({layer, count});
  return layers;
}

ExpertPlacement fit_placement(const ExpertMap& map, const ModelLayers& layers) {
  ExpertPlacement placement{map.placement.epoch, {}};
  placement.experts_of_slots.resize(static_cast<std::size_t>(layers.all));
  for (std::size_t number = 0; number < layers.experts.size(); ++number) {
    const auto [layer, experts] = layers.experts[number];
    const std::int64_t row = row_of(map, layers, number);
    if (experts != map.experts) {
      throw InputError(
          fmt::format("{}: is of {} experts, but layer {} of the model has {}; name a map of these",
                      map.origin, map.experts, layer, experts));
    }
    placement.experts_of_slots[static_cast<std::size_t>(layer)] =
        row < 0 ? contiguous_slots(experts, map.slots)
                : map.placement.experts_of_slots[static_cast<std::size_t>(row)];
  }
  return shortest(std::move(placement), layers);
}

ExpertPlacement first_placement(FirstPlacement first, std::int64_t redundant, const ModelLayers& layers,
                                std::int64_t ep, const std::string& option) {
  if (first == FirstPlacement::kRoundRobin && redundant > 0) {
    throw UsageError(fmt::format(
        "{}: engines have no redundant experts where they go round the ranks; leave one out", option));
  }
  ExpertPlacement placement;
  if (first == FirstPlacement::kContiguous && redundant == 0) return placement;
  placement.experts_of_slots.resize(static_cast<std::size_t>(layers.all));
  for (const auto& [layer, experts] : layers.experts) {
    const std::int64_t slots = experts + redundant;
    if (slots > kMostMapSlots / layers.all) {
      throw UsageError(fmt::format("{}: {} slots in each of {} layers are more than {} together", option,
                                   slots, layers.all, kMostMapSlots));
    }
    if (slots % ep != 0) {
      throw UsageError(fmt::format(
          "{}: {} experts of layer {} and {} redundant ones are {} slots, which ep={} does not divide; "
          "choose as many redundant experts that it does",
          option, experts, layer, redundant, slots, ep));
    }
    placement.experts_of_slots[static_cast<std::size_t>(layer)] =
        first == FirstPlacement::kRoundRobin ? slots_in_turn(experts, ep) : contiguous_slots(experts, slots);
  }
  return shortest(std::move(placement), layers);
}

}  // namespace weightcast
