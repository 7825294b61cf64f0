#include "plan/plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include "core/error.hpp"
#include "core/hash.hpp"
#include "core/units.hpp"
#include "plan/batches.hpp"
#include "plan/buckets.hpp"
#include "plan/division.hpp"
#include "plan/plan_hash.hpp"
#include "plan/proof.hpp"
#include "plan/routing.hpp"

namespace weightcast {

namespace {

void check_limits(const Topology& topology, const Limits& limits) {
  if (limits.bucket_bytes < Limits::kLeastBucketBytes) {
    throw UsageError(fmt::format("--bucket-size {}: too small; the least is {}",
                                 format_bytes(limits.bucket_bytes), format_bytes(Limits::kLeastBucketBytes)));
  }
  if (limits.buffers < 1) throw UsageError("--buffers: at least one staging buffer is needed");
  if (topology.trainers < 1) throw UsageError("--trainers: at least one trainer rank is needed");
}

void add(Hasher& hasher, const Box& box) {
  hasher.add(box.row).add(box.rows).add(box.col).add(box.cols);
}

}  // namespace

std::uint64_t hash_plan(const Plan& plan, const Family& family) {
  const Catalog& catalog = family.catalog();
  Hasher hasher;
  // What the cuts of messages depend on beside the plan itself.
  hasher.add(kSegmentAlignment).add(kDirectBytes);
  for (const Tensor& tensor : catalog.tensors()) {
    hasher.add(tensor.name).add(tensor.dtype).add(tensor.shape.dims());
    for (const std::int64_t extent : tensor.shape.extents()) hasher.add(extent);
  }
  if (const Choice* const choice = family.choice(); choice != nullptr) {
    hasher.add(std::string_view(choice->id)).add(choice->staying_tensors).add(choice->staying_bytes);
  }
  const EngineLayout& engine = plan.topology.engine;
  hasher.add(plan.topology.trainers).add(plan.topology.colocate).add(plan.topology.source_split);
  if (plan.topology.trainer_layout) hasher.add(std::string_view(plan.topology.trainer_layout->to_string()));
  for (const auto& held : plan.topology.holdings) {
    hasher.add(held.size());
    for (const Holding& holding : held) add(hasher.add(holding.tensor), holding.box);
  }
  hasher.add(engine.engine)
      .add(engine.tp)
      .add(engine.ep)
      .add(engine.pp)
      .add(engine.replicas)
      .add(std::string_view(engine.moe_layout));
  if (engine.attention_dp > 1) hasher.add(engine.attention_dp);
  if (!engine.landing.empty()) hasher.add(std::string_view(engine.landing));
  for (const std::int64_t layers : engine.stage_layers) hasher.add(layers);
  hasher.add(engine.experts.epoch).add(std::string_view(engine.experts.fingerprint()));
  hasher.add(plan.limits.bucket_bytes).add(plan.limits.buffers).add(plan.limits.fan_out);
  if (engine.quantizer) {
    hasher.add(engine.quantizer->scheme).add(engine.quantizer->rule).add(plan.limits.quantize_at);
    hasher.add(std::string_view(to_string(engine.activations)));
  }
  for (const WireForm& form : plan.wire) hasher.add(form.negated_exp);
  for (const auto& set : plan.destinations) {
    hasher.add(set.size());
    for (const std::int64_t coordinate : set) hasher.add(coordinate);
  }
  for (const Segment& segment : plan.segments) {
    hasher.add(segment.tensor).add(segment.offset);
    add(hasher, segment.box);
  }
  for (const Bucket& bucket : plan.buckets) {
    hasher.add(bucket.root).add(bucket.destinations).add(bucket.first_segment).add(bucket.segments);
    hasher.add(bucket.bytes);
  }
  return hasher.digest();
}

namespace {

/// Of the bytes that trainers hand to somebody, the share of those that somebody else gets.
double travelling_share(const Plan& plan, const std::vector<std::vector<Piece>>& by_trainer) {
  double all = 0;  // not whole numbers: a file may speak of a model of any size
  double travelling = 0;
  for (std::uint32_t root = 0; root < by_trainer.size(); ++root) {
    for (const Piece& piece : by_trainer[root]) {
      const auto bytes = static_cast<double>(plan.wire[piece.tensor].bytes(piece.box));
      all += bytes;
      if (plan.travels({root, piece.destinations})) travelling += bytes;
    }
  }
  return all > 0 ? travelling / all : 0;
}

}  // namespace

std::vector<std::int64_t> Plan::destination_ranks(std::uint32_t set) const {
  std::vector<std::int64_t> ranks;
  const EngineLayout& engine = topology.engine;
  for (std::int64_t replica = 0; replica < engine.replicas; ++replica) {
    for (const std::int64_t coordinate : destinations[set]) {
      ranks.push_back(topology.world_rank_of_inference(replica * engine.replica_ranks() + coordinate));
    }
  }
  return ranks;
}

bool Plan::receives(std::uint32_t set, std::int64_t world_rank) const {
  const auto rank = topology.inference_rank(world_rank);
  return rank && std::binary_search(destinations[set].begin(), destinations[set].end(),
                                    *rank % topology.engine.replica_ranks());
}

std::int64_t Plan::routes() const {
  std::set<std::pair<std::uint32_t, std::uint32_t>> routes;
  for (const Bucket& bucket : buckets) routes.emplace(bucket.root, bucket.destinations);
  return static_cast<std::int64_t>(routes.size());
}

bool Plan::travels(const Bucket& bucket) const {
  const auto receivers =
      destinations[bucket.destinations].size() * static_cast<std::size_t>(topology.engine.replicas);
  return receivers > (receives(bucket.destinations, bucket.root) ? 1u : 0u);
}

std::int64_t Plan::wire_bytes() const {
  return std::accumulate(
      buckets.begin(), buckets.end(), std::int64_t{0},
      [&](std::int64_t sum, const Bucket& bucket) { return travels(bucket) ? sum + bucket.bytes : sum; });
}

std::vector<Traffic> Plan::traffic() const {
  // By destination set first: a plan for hundreds of ranks has thousands of buckets but few sets.
  std::vector<Traffic> by_set(destinations.size());
  std::vector<Traffic> by_rank(static_cast<std::size_t>(topology.ranks()));
  for (const Bucket& bucket : buckets) {
    by_set[bucket.destinations].received += bucket.bytes;
    ++by_set[bucket.destinations].buckets;
    Traffic& root = by_rank[bucket.root];
    if (travels(bucket)) root.sent += bucket.bytes;
    if (receives(bucket.destinations, bucket.root)) {
      // Nothing comes to it from others: what its set adds below is taken away.
      root.received -= bucket.bytes;
    } else {
      ++root.buckets;
    }
  }
  for (std::uint32_t set = 0; set < destinations.size(); ++set) {
    for (const std::int64_t rank : destination_ranks(set)) {
      by_rank[static_cast<std::size_t>(rank)].received += by_set[set].received;
      by_rank[static_cast<std::size_t>(rank)].buckets += by_set[set].buckets;
    }
  }
  return by_rank;
}

Plan make_plan(const Family& family, const Topology& topology, const Limits& limits) {
  check_limits(topology, limits);
  const Catalog& catalog = family.catalog();
  Routing routing = route_pieces(family, topology, limits);
  Plan plan;
  plan.topology = topology;
  plan.limits = limits;
  plan.destinations = routing.destinations;
  plan.wire = routing.wire;
  plan.scopes = routing.scopes;
  const std::vector<std::vector<Piece>> by_trainer =
      divide_among_trainers(catalog, routing, topology.trainers, topology.source_split);
  plan.limits = divided_for_peers(topology, limits, travelling_share(plan, by_trainer));
  fill_buckets(catalog, by_trainer, plan);
  for (const Bucket& bucket : plan.buckets) {
    plan.slot_bytes = std::max(plan.slot_bytes, round_up(bucket.bytes, kSegmentAlignment));
  }
  prove_sent_once(plan, catalog);
  plan.hash = hash_plan(plan, family);
  return plan;
}

}  // namespace weightcast
