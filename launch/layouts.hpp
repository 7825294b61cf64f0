#pragma once

#include <optional>

#include "launch/options.hpp"
#include "model/landing/landing_map.hpp"
#include "plan/plan.hpp"
#include "plan/topology.hpp"

namespace weightcast {

/// How the trainers divide the model, if `--alloc` or `--trainer-alloc` says so.
std::optional<TrainerLayout> trainer_layout_of(const Options& options);

/// The roles and limits that the options describe; without an engine's layout that of the landing map, if
/// there is one. Throws UsageError for what cannot be read or does not fit together.
Topology topology_of(const Options& options, const LandingMap* landing);
Limits limits_of(const Options& options);

}  // namespace weightcast
