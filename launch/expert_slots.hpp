#pragma once

#include <optional>
#include <string>

#include "control/control.hpp"
#include "launch/model.hpp"
#include "launch/options.hpp"
#include "model/engine.hpp"
#include "model/expert_map.hpp"

namespace weightcast {

/// The map that `--expert-map` names; nothing without the option. Throws IoError, InputError.
std::optional<ExpertMap> load_expert_map(const Options& options);

/// The same for a job: rank 0 reads the file for all. Throws by agreement. Collective.
std::optional<ExpertMap> load_expert_map(Control& control, const Options& options);

/// Says in `layout` which experts of the model sit in which slots: as `map` says, else as `--placement` and
/// `--redundant-experts` do. Throws InputError for a map that does not fit the model, UsageError where its
/// ranks are not those of the layout, for a model without experts, and for an engine that has no slots.
void place_experts(const Options& options, const std::optional<ExpertMap>& map, const Model& model,
                   EngineLayout& layout);

/// `slots by map 0123456789abcdef of epoch 3`; empty where slot e holds expert e.
std::string slots_text(const EngineLayout& layout);

}  // namespace weightcast
