#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/shape.hpp"
#include "model/engine.hpp"
#include "model/trainer.hpp"

namespace weightcast {

/// What of the model each trainer holds, and so sends.
enum class SourceSplit : std::uint8_t {
  kCatalog,  ///< equal runs of bytes of what each set of ranks needs, in catalog order
  kExpert,   ///< equal runs of experts, as expert-parallel trainers hold them; the rest as kCatalog
  kRow,      ///< equal runs of rows of every tensor, as fully sharded trainers hold them
};

/// A box of a tensor that a trainer holds.
struct Holding {
  std::uint32_t tensor = 0;
  Box box;

  friend auto operator<=>(const Holding& a, const Holding& b) = default;
};

/// Which world rank plays which role: the first `trainers` ranks are trainers and the rest inference ranks,
/// in the engine's rank order; colocated, every rank is both.
struct Topology {
  std::int64_t trainers = 1;
  EngineLayout engine;
  bool colocate = false;
  SourceSplit source_split = SourceSplit::kCatalog;
  /// What the trainers hold, and so may send, in place of `source_split`. Has `trainers` ranks.
  std::optional<TrainerLayout> trainer_layout;
  /// By trainer, what each says that it holds, where trainers say so themselves. Empty: each trainer may send
  /// everything, or `trainer_layout` says what.
  std::vector<std::vector<Holding>> holdings = {};

  std::int64_t ranks() const { return colocate ? engine.ranks() : trainers + engine.ranks(); }
  std::optional<std::int64_t> trainer(std::int64_t rank) const;
  std::optional<std::int64_t> inference_rank(std::int64_t rank) const;
  std::int64_t world_rank_of_inference(std::int64_t inference_rank) const;
};

/// Throws UsageError unless the world has just the ranks that the roles need.
void require_world_size(const Topology& topology, std::int64_t world_size);

}  // namespace weightcast
