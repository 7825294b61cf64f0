#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "model/engine.hpp"

namespace weightcast {

/// Which world rank plays which role: the first `trainers` ranks are trainers and the rest inference ranks,
/// in the engine's rank order; colocated, every rank is both.
struct Topology {
  std::int64_t trainers = 1;
  EngineLayout engine;
  bool colocate = false;

  std::int64_t ranks() const { return colocate ? engine.ranks() : trainers + engine.ranks(); }
  std::optional<std::int64_t> trainer(std::int64_t rank) const;
  std::optional<std::int64_t> inference_rank(std::int64_t rank) const;
  std::int64_t world_rank_of_inference(std::int64_t inference_rank) const;
};

/// Throws UsageError unless the world has just the ranks that the roles need.
void require_world_size(const Topology& topology, std::int64_t world_size);

}  // namespace weightcast
