#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "control/signals.hpp"
#include "core/error.hpp"
#include "core/units.hpp"
#include "launch/commands.hpp"
#include "launch/files/output_file.hpp"
#include "launch/model.hpp"
#include "model/expert_balance.hpp"
#include "model/expert_map.hpp"
#include "model/fitted_placement.hpp"
#include "model/map_fields.hpp"
#include "model/near_balance.hpp"
#include "report/log.hpp"
#include "report/table.hpp"
#include "storage/foreign_file.hpp"

namespace weightcast {

namespace {

void require_options(const Options& options) {
  const auto require = [](bool given, const char* option, const char* what) {
    if (!given) throw UsageError(fmt::format("{} is needed: {}", option, what));
  };
  require(!options.load.empty(), "--load FILE", "the loads of experts, as JSON [layers][experts]");
  require(options.slots.has_value(), "--slots S", "the expert slots of a layer on all ranks together");
  require(options.ranks.has_value(), "--ranks R", "the ranks that the slots are on");
  require(!options.output.empty(), "--output MAP", "the file of the map, or - for stdout");
  if (options.max_moves && options.previous.empty()) {
    throw UsageError(
        "--max-moves: counts from the map that engines have now; add --previous MAP, or leave it out");
  }
}

/// A map that ranks of that shape may have now.
ExpertMap read_previous(const Options& options, const ExpertLoads& loads) {
  ExpertMap map = parse_expert_map(read_json_file(options.previous, kMostMapBytes), options.previous);
  const bool same = map.layers() == loads.layers && map.experts == loads.experts &&
                    map.slots == *options.slots && map.ep == *options.ranks;
  if (same) return map;
  throw UsageError(
      fmt::format("--previous {}: is of {} layers, {} experts, {} slots and {} ranks, but the loads and "
                  "--slots and --ranks are of {}, {}, {} and {}; name a map of these, or leave it out",
                  options.previous, map.layers(), map.experts, map.slots, map.ep, loads.layers, loads.experts,
                  *options.slots, *options.ranks));
}

/// Bytes of experts, as the model has them, that ranks get and had in no slot.
std::int64_t moved_bytes(const Options& options, ExpertMap from, ExpertMap to) {
  std::optional<TrainerLayout> none;
  const Model model = load_model(options, nullptr, none);
  const Catalog& catalog = model.family->whole_catalog();
  const ModelLayers layers = model_layers(catalog, 0);
  if (layers.experts.empty()) {
    throw UsageError(fmt::format("--model {}: {} has no experts; leave it out", options.model, model.title));
  }
  from.origin = options.previous.empty() ? "--slots" : options.previous;
  to.origin = options.load;
  from.placement = fit_placement(from, layers);
  to.placement = fit_placement(to, layers);
  std::map<std::int64_t, std::int64_t> bytes;  // of an expert, by layer
  for (const Tensor& tensor : catalog.tensors()) {
    if (tensor.name.find(".experts.") != std::string::npos) bytes[tensor.layer] += tensor.bytes();
  }
  std::int64_t moved = 0;
  for (const ExpertLayer& layer : layers.experts) {
    for (std::int64_t rank = 0; rank < to.ep; ++rank) {
      const auto experts_of = [&](const ExpertMap& map) {
        const auto slots = map.placement.experts_on(layer.layer, map.ep, rank, map.experts, map.origin);
        return std::set<std::int64_t>(slots.begin(), slots.end());
      };
      const std::set<std::int64_t> had = experts_of(from);
      const std::set<std::int64_t> gets = experts_of(to);
      moved += std::ranges::count_if(gets, [&](std::int64_t expert) { return !had.contains(expert); }) *
               (bytes[layer.layer] / to.experts);
    }
  }
  return moved;
}

std::vector<std::string> row_of(const char* when, const std::vector<double>& imbalances) {
  const auto worst = std::max_element(imbalances.begin(), imbalances.end());
  const double sum = std::accumulate(imbalances.begin(), imbalances.end(), 0.0);
  return {when, fmt::format("{:.3f}", *worst), std::to_string(worst - imbalances.begin()),
          fmt::format("{:.3f}", sum / static_cast<double>(imbalances.size()))};
}

}  // namespace

void run_balance(const Options& options, OutputFile* /*json*/) {
  require_options(options);
  const ExpertLoads loads = parse_expert_loads(read_json_file(options.load, kMostMapBytes), options.load);
  const BalanceShape shape{*options.slots, options.groups, options.nodes, *options.ranks};
  const ExpertMap before = options.previous.empty()
                               ? first_expert_map(loads.layers, loads.experts, shape.slots, shape.ranks)
                               : read_previous(options, loads);
  ExpertMap map = options.max_moves ? balance_near(loads, shape, before, *options.max_moves)
                                    : balance_experts(loads, shape);
  map.placement.epoch = before.placement.epoch + 1;
  std::string cost;
  if (!options.model.empty()) {
    cost = fmt::format("moving experts there takes {} between ranks, in the model's own types",
                       format_bytes(moved_bytes(options, before, map)));
  }
  require_no_signal("nothing was written");
  if (options.output == "-") set_report_beside_log();
  const std::string text = expert_map_text(map);
  // At once the whole of it: an earlier map of that name stays as it was, or is replaced.
  OutputFile("output", options.output, text).write(text);
  print_line(fmt::format("{} of {} experts in {} slots of {}; epoch {}", counted(loads.layers, "layer"),
                         loads.experts, shape.slots, counted(shape.ranks, "rank"), map.placement.epoch));
  print_line(shape.hierarchical()
                 ? fmt::format("{} on {}", counted(shape.groups, "group"), counted(shape.nodes, "node"))
                 : fmt::format("all experts as one group: {} do not divide {}", counted(shape.nodes, "node"),
                               counted(shape.groups, "group")));
  Table table({"busiest rank ÷ mean", "worst layer", "its number", "mean of layers"});
  const std::vector<double> old_imbalances = imbalances(loads, before);
  const std::vector<double> new_imbalances = imbalances(loads, map);
  table.add(row_of("before", old_imbalances));
  table.add(row_of("after", new_imbalances));
  print_report(table.text());
  print_line(fmt::format("{} of {} slots get another expert", changed_slots(before, map),
                         loads.layers * shape.slots));
  if (!cost.empty()) print_line(cost);
  const double old_worst = *std::ranges::max_element(old_imbalances);
  const double new_worst = *std::ranges::max_element(new_imbalances);
  if (new_worst > old_worst) {
    log_note(
        fmt::format("the busiest rank has {:.3f} times the mean with this map, and {:.3f} with the one "
                    "before; that one is the better",
                    new_worst, old_worst));
  }
}

}  // namespace weightcast
