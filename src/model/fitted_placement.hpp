#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/catalog.hpp"
#include "model/expert_map.hpp"
#include "model/expert_placement.hpp"

namespace weightcast {

/// A layer of a model that has routed experts.
struct ExpertLayer {
  std::int64_t layer = 0;
  std::int64_t experts = 0;
};

/// The layers of a model, whose layers are numbered from 0 on.
struct ModelLayers {
  std::int64_t own = 0;                   ///< without draft layers, which come behind them
  std::int64_t all = 0;                   ///< with them; at least the last one of the catalog, and one
  std::vector<ExpertLayer> experts = {};  ///< ascending
};

/// The layers of `catalog`, whose tensors of experts have `.experts.` in their names. `own` is how many are
/// the model's own, none where all are.
ModelLayers model_layers(const Catalog& catalog, std::int64_t own);

/// A map as the placement of a model. A map has a row for each layer of the model, or for each that has
/// experts. Draft layers that it has no row for hold expert p mod experts in slot p, as engines begin. Rows
/// of layers without experts are left out, so that maps that place alike are alike. Throws InputError that
/// names the map and what of the model it does not fit: its layers, or the experts of one.
ExpertPlacement fit_placement(const ExpertMap& map, const ModelLayers& layers);

/// How engines place experts before any rebalance.
enum class FirstPlacement : std::uint8_t {
  /// Slot p holds expert p mod experts (vLLM's `linear`, SGLang's `trivial`).
  kContiguous,
  /// Slot k of rank r holds expert r + k · ep (vLLM's `round_robin`).
  kRoundRobin,
};

/// That placement of a model's experts in experts + `redundant` slots of each layer, on `ep` ranks, with
/// epoch 0. Throws UsageError that names `option` for slots that ep does not divide, for more slots than maps
/// have, and for redundant slots where experts go round.
ExpertPlacement first_placement(FirstPlacement first, std::int64_t redundant, const ModelLayers& layers,
                                std::int64_t ep, const std::string& option);

}  // namespace weightcast
