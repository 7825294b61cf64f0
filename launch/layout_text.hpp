#pragma once

#include <cstdint>
#include <string>

#include "plan/topology.hpp"

namespace weightcast {

/// How the layouts were read, one line a side, for people; of a model with `layers` layers, which only a
/// trainers' layout divides.
std::string explain(const Topology& topology, std::int64_t layers);

/// `trainer (pp 0 dp 0 cp 1 tp 1, experts ep 0 etp 1)`, `inference 3 (replica 0 pp 0 tp 3 ep 1)`, or both.
std::string role_of(const Topology& topology, std::int64_t rank);

}  // namespace weightcast
