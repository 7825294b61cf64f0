#pragma once

#include <optional>
#include <string>

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

/// How the layouts were read, one line a side, for people; of a model with `layers` layers, which only a
/// trainers' layout divides.
std::string explain(const Topology& topology, std::int64_t layers);

/// `trainer (pp 0 dp 0 cp 1 tp 1, experts ep 0 etp 1)`, `inference 3 (replica 0 pp 0 tp 3 ep 1)`, or both.
std::string role_of(const Topology& topology, std::int64_t rank);

}  // namespace weightcast
