#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/engine.hpp"
#include "model/expert_map.hpp"
#include "model/family.hpp"
#include "plan/held_weights.hpp"
#include "plan/plan.hpp"

namespace weightcast {

/// What a rebalance moves, over all ranks. A slot counts once, whatever parameters it has slabs in; bytes are
/// of all of them.
struct RebalanceFigures {
  std::int64_t local = 0;       ///< slots that get an expert that the rank has in another slot
  std::int64_t same_host = 0;   ///< get one from another rank of the host
  std::int64_t other_host = 0;  ///< get one from a rank elsewhere
  std::int64_t local_bytes = 0;
  std::int64_t same_host_bytes = 0;
  std::int64_t other_host_bytes = 0;
  /// Of experts that a rank gets and had in no slot, each once: what no rebalance can do without.
  std::int64_t least_bytes = 0;

  std::int64_t changed() const { return local + same_host + other_host; }
  /// From rank to rank.
  std::int64_t moved_bytes() const { return same_host_bytes + other_host_bytes; }
};

/// A rebalance as an update: every inference rank is a trainer of what it holds under the old map, and gets
/// under the new one what it lacks. Tensors of the model are slabs, one for each that moves (`family`).
/// Source and destination are the same memory, so the plan's buckets come in rounds: a rank reads all that it
/// sends in a round before it writes any of what it gets there. Rounds have no byte of memory in common.
struct Rebalance {
  std::shared_ptr<const Family> family;
  Plan plan;
  std::vector<std::uint32_t> rounds;  ///< first bucket of each
  std::vector<HeldWeights> held;      ///< by rank; a buffer is the parameter of that number
  RebalanceFigures figures;
};

/// Plans the moves from one map to the other of what `layout` has in memory, which says nothing of experts'
/// places. A map has a row for each layer of the model, which may be empty where there are no experts, or no
/// rows where slot e holds expert e. `hosts[r]`: the number of the host of inference rank r. An expert comes
/// from the rank's own slots, else from a rank of the host, else from elsewhere, of several such ranks from
/// the one that sends least. Staging is at most `limits.buffers` × `limits.bucket_bytes` on each rank. A pure
/// function of its arguments.
///
/// Throws UsageError when the maps do not fit one another, the layout or the model (naming --from, --to),
/// when nothing of this layout depends on them, and when staging is too small.
Rebalance plan_rebalance(const Family& family, const EngineLayout& layout, const ExpertMap& from,
                         const ExpertMap& to, const std::vector<std::int64_t>& hosts, const Limits& limits);

/// Throws UsageError naming both maps unless `to` can follow `from`: the same layers, experts, slots and
/// ranks, and a later epoch.
void require_successor(const ExpertMap& from, const ExpertMap& to);

}  // namespace weightcast
