#include "launch/files/inspect_landing.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

#include "core/units.hpp"
#include "model/landing/unread_rows.hpp"
#include "report/json_report.hpp"
#include "report/log.hpp"
#include "report/table.hpp"

namespace weightcast {

namespace {

/// What a map does on one rank.
struct Counts {
  std::int64_t boxes = 0;
  std::int64_t turned = 0;
  std::int64_t bytes = 0;  ///< of parameters that tensors land in
};

Counts counts_of(const LandingRank& rank) {
  Counts counts;
  for (const LandedParameter& parameter : rank.parameters) {
    counts.boxes += static_cast<std::int64_t>(parameter.landings.size());
    for (const Landing& landing : parameter.landings) {
      counts.turned += landing.turned ? 1 : 0;
      counts.bytes += landing.box.area() * dtype_bytes(parameter.dtype);
    }
  }
  return counts;
}

}  // namespace

void inspect_landing(const LandingMap& map, OutputFile* json) {
  print_line(fmt::format("# {}: landing map of {} {} for {}, tp={},ep={},pp={}, {} tensors, hash {}",
                         map.origin, engine_name(map.engine), map.engine_version, map.architecture, map.tp,
                         map.ep, map.pp, map.tensors.size(), map.hash));
  nlohmann::ordered_json report = {{"weightcast", "inspect"},
                                   {"path", map.origin},
                                   {"engine", engine_name(map.engine)},
                                   {"engine_version", map.engine_version},
                                   {"architecture", map.architecture},
                                   {"tp", map.tp},
                                   {"ep", map.ep},
                                   {"pp", map.pp},
                                   {"tensors", map.tensors.size()},
                                   {"hash", map.hash}};
  auto& ranks = report["ranks"] = nlohmann::ordered_json::array();
  Table table({"rank", "parameters", "boxes", "turned", "landed bytes", "left", "loader", "skipped"});
  for (std::size_t number = 0; number < map.ranks.size(); ++number) {
    const LandingRank& rank = map.ranks[number];
    const Counts counts = counts_of(rank);
    table.add({std::to_string(number), std::to_string(rank.parameters.size()), std::to_string(counts.boxes),
               std::to_string(counts.turned), std::to_string(counts.bytes), std::to_string(rank.left.size()),
               std::to_string(rank.loader.size()), std::to_string(rank.skipped)});
    ranks.push_back({{"parameters", rank.parameters.size()},
                     {"boxes", counts.boxes},
                     {"turned", counts.turned},
                     {"landed_bytes", counts.bytes},
                     {"left", rank.left},
                     {"loader", rank.loader.size()},
                     {"skipped", rank.skipped}});
  }
  print_report(table.text());
  for (const LoadedTensor& loaded : map.ranks.front().loader) {
    print_line(fmt::format("# rank 0: {} goes through the engine's loader: {}",
                           map.tensors[loaded.tensor].name, loaded.why));
  }
  if (const std::string unread = unread_text(map); !unread.empty())
    log_note(fmt::format("{}: {}", map.origin, unread));
  if (json != nullptr) json->write(json_report(report));
}

}  // namespace weightcast
