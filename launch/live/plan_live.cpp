#include "launch/live/plan_live.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "live/dead_exporters.hpp"
#include "live/expert_table.hpp"
#include "live/live_weights.hpp"
#include "live/published_layout.hpp"
#include "model/catalog.hpp"
#include "report/log.hpp"
#include "report/table.hpp"

namespace weightcast {

namespace {

/// The first of a trainer's boxes that has any of a box of the tensor; null when there is none.
const HeldBox* feeding(const HeldWeights& held, std::uint32_t tensor, const Box& box) {
  for (const HeldBox& candidate : held.of(tensor)) {
    if (!candidate.box.intersect(box).empty()) return &candidate;
  }
  return nullptr;
}

}  // namespace

LivePlan::LivePlan(const Options& options, const Family& family, Topology& topology) {
  const auto from = options.sources.empty() ? std::nullopt : live_directory(options.sources.front());
  if (from) trainers_ = load_live_trainers(options, *from, family, topology);
  for (const LiveTrainer& trainer : trainers_) {
    require_not_dead(trainer.manifest);
    if (compares_tied_head(options))
      require_tied(trainer.weights.checkpoint, trainer.weights.binding, family.catalog());
  }
  const auto to = live_directory(options.sink);
  for (std::int64_t rank = 0; to && rank < topology.engine.ranks(); ++rank) {
    engines_.push_back(read_manifest_of(*to, Role::kEngine, rank, topology.engine.ranks()));
    require_not_dead(engines_.back());
  }
}

void LivePlan::require_patterns_fit(const Model& model) const {
  const std::vector<std::string> unmatched = model.patterns.unmatched();
  std::vector<std::int64_t> fits(unmatched.size(), 0);
  for (const LiveTrainer& trainer : trainers_) {
    std::ranges::transform(fits, fits_any(unmatched, trainer.weights.binding.left_out), fits.begin(),
                           [](std::int64_t a, std::int64_t b) { return std::max(a, b); });
  }
  model.patterns.require_matched(model.family->whole_catalog(), fits);
}

std::optional<ExpertMap> LivePlan::published_experts(std::int64_t ep) const {
  if (engines_.empty() || engines_.front().expert_table.empty()) return std::nullopt;
  if (reach_of(engines_.front()) == Reach::kOtherHost) return std::nullopt;
  require_reachable(engines_.front());
  ExpertMap map = ExpertTable(engines_.front()).read();
  map.ep = ep;
  return map;
}

void LivePlan::require_published(const Plan& plan, const Family& family) const {
  for (const LiveTrainer& trainer : trainers_) {
    static_cast<void>(held_by(trainer, family.catalog()));
  }
  const EngineLayout& layout = plan.topology.engine;
  for (const Manifest& engine : engines_) {
    require_published_layout(engine, layout);
    require_place_for_part(engine, family);
    if (layout.canonical()) {
      static_cast<void>(canonical_parameters(engine, family));
      continue;
    }
    static_cast<void>(
        parameter_entries(engine, family.parameters(layout, engine_rank(layout, engine.rank)), family));
  }
}

void LivePlan::print(const Plan& plan, const Catalog& catalog, std::optional<std::int64_t> rank) const {
  if (trainers_.empty() && engines_.empty()) return;
  constexpr std::size_t kMostRows = 64;
  Table table({"live", "rank", "host", "process", "device", "tensors"});
  std::size_t rows = 0;
  const auto add = [&](const Manifest& manifest, std::int64_t world_rank) {
    if (++rows > kMostRows) return;
    table.add({fmt::format("{} {}", role_name(manifest.role), manifest.rank), std::to_string(world_rank),
               manifest.host, std::to_string(manifest.pid),
               manifest.device().empty() ? "cpu" : manifest.device(),
               std::to_string(manifest.entries.size())});
  };
  for (const LiveTrainer& trainer : trainers_) add(trainer.manifest, trainer.manifest.rank);
  for (const Manifest& engine : engines_) add(engine, plan.topology.world_rank_of_inference(engine.rank));
  print_report(table.text());
  if (rows > kMostRows) print_line(fmt::format("# {} more", rows - kMostRows));
  if (rank && !trainers_.empty()) print_boxes(plan, catalog, *rank);
}

void LivePlan::print_boxes(const Plan& plan, const Catalog& catalog, std::int64_t rank) const {
  constexpr std::size_t kMostRows = 256;
  Table table({"box of a tensor", "of", "trainer", "segment", "from byte"});
  std::size_t rows = 0;
  // Where it is in the trainers' memory, be it a tensor or a box of one.
  std::vector<HeldWeights> held;
  for (const LiveTrainer& trainer : trainers_) {
    held.push_back(held_by(trainer, catalog));
  }
  for (const Bucket& bucket : plan.buckets) {
    const auto receivers = plan.destination_ranks(bucket.destinations);
    if (bucket.root != rank && !std::binary_search(receivers.begin(), receivers.end(), rank)) continue;
    const HeldWeights& weights = held.at(bucket.root);
    for (std::uint32_t i = 0; i < bucket.segments; ++i) {
      const Segment& segment = plan.segments[bucket.first_segment + i];
      const HeldBox* from = feeding(weights, segment.tensor, segment.box);
      if (from == nullptr || ++rows > kMostRows) continue;
      const std::int64_t row = std::max(segment.box.row, from->box.row);
      const std::int64_t col = std::max(segment.box.col, from->box.col);
      table.add({segment.box.to_string(), catalog[segment.tensor].name, std::to_string(bucket.root),
                 std::to_string(from->buffer),
                 std::to_string(from->at(row, col, dtype_bytes(catalog[segment.tensor].dtype)))});
    }
  }
  print_report(table.text());
  if (rows > kMostRows) print_line(fmt::format("# {} more boxes", rows - kMostRows));
}

}  // namespace weightcast
