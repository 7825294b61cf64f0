#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "control/signals.hpp"
#include "core/error.hpp"
#include "core/units.hpp"
#include "launch/commands.hpp"
#include "launch/files/output_file.hpp"
#include "model/expert_balance.hpp"
#include "model/expert_map.hpp"
#include "model/map_fields.hpp"
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

std::int64_t changed_slots(const ExpertMap& from, const ExpertMap& to) {
  std::int64_t changed = 0;
  for (std::size_t layer = 0; layer < to.placement.experts_of_slots.size(); ++layer) {
    const auto& before = from.placement.experts_of_slots[layer];
    const auto& after = to.placement.experts_of_slots[layer];
    for (std::size_t slot = 0; slot < after.size(); ++slot) changed += before[slot] != after[slot] ? 1 : 0;
  }
  return changed;
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
  ExpertMap map = balance_experts(loads, shape);
  const ExpertMap before = options.previous.empty()
                               ? first_expert_map(loads.layers, loads.experts, shape.slots, shape.ranks)
                               : read_previous(options, loads);
  map.placement.epoch = before.placement.epoch + 1;
  require_no_signal("nothing was written");
  if (options.output == "-") set_report_beside_log();
  const std::string text = expert_map_text(map);
  // At once the whole of it: an earlier map of that name stays as it was, or is replaced.
  OutputFile("output", options.output, text).write(text);
  print_line(fmt::format("{} of {} experts in {} slots of {}; epoch {}", counted(loads.layers, "layer"),
                         loads.experts, shape.slots, counted(shape.ranks, "rank"), map.placement.epoch));
  print_line(shape.hierarchical()
                 ? fmt::format("{} on {}", counted(shape.groups, "group"), counted(shape.nodes, "node"))
                 : fmt::format("all experts as one group: {} nodes do not divide {} groups", shape.nodes,
                               shape.groups));
  Table table({"busiest rank ÷ mean", "worst layer", "its number", "mean of layers"});
  table.add(row_of("before", imbalances(loads, before)));
  table.add(row_of("after", imbalances(loads, map)));
  print_report(table.text());
  print_line(fmt::format("{} of {} slots get another expert", changed_slots(before, map),
                         loads.layers * shape.slots));
}

}  // namespace weightcast
