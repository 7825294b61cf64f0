#include "launch/files/inspect_shards.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/text.hpp"
#include "core/units.hpp"
#include "launch/files/shard_set.hpp"
#include "report/json_report.hpp"
#include "report/log.hpp"
#include "report/table.hpp"
#include "storage/reader.hpp"

namespace weightcast {

void inspect_shards(const std::string& directory, OutputFile* json) {
  const std::vector<Shard> shards = read_shards(directory);
  const EngineLayout layout = common_layout(directory, shards);
  const std::int64_t version = shards.front().integer("weight_version");
  const bool whole = layout.attention_dp == 1;
  Table table({"file", "replica", "pp", whole ? "tp" : "attn_dp, attn_tp", "ep", "parameters", "bytes"});
  nlohmann::ordered_json report = {{"weightcast", "inspect"}, {"path", directory}};
  auto& files = report["files"] = nlohmann::ordered_json::array();
  auto& list = report["shards"] = nlohmann::ordered_json::array();
  std::int64_t total = 0;
  for (const Shard& shard : shards) {
    const Checkpoint file = read_checkpoint(shard.path);
    std::int64_t bytes = 0;
    for (const StoredTensor& tensor : file.tensors) bytes += tensor.obstacle == nullptr ? tensor.bytes() : 0;
    const EngineRank place = engine_rank(layout, shard.integer("rank"));
    table.add(
        {std::filesystem::path(shard.path).filename().string(), std::to_string(place.replica),
         std::to_string(place.pp),
         whole ? std::to_string(place.tp) : fmt::format("{}, {}", place.attention_dp, place.attention_tp),
         std::to_string(place.ep), std::to_string(file.tensors.size()), format_bytes(bytes)});
    files.push_back(shard.path);
    list.push_back({{"rank", shard.integer("rank")}, {"parameters", file.tensors.size()}, {"bytes", bytes}});
    total += bytes;
  }
  report["weight_version"] = version;
  report["bytes"] = total;
  print_line(fmt::format("# {}: {} of version {}, {}", directory,
                         counted(static_cast<std::int64_t>(shards.size()), "shard"), version,
                         format_bytes(total)));
  print_line(fmt::format("# layout: {} × pp {} × {}, names of {}", counted(layout.replicas, "replica"),
                         layout.pp, layout.cut_text(), engine_name(layout.engine)));
  const WrittenPlacement placement = placement_of(shards.front());
  report["expert_epoch"] = placement.epoch;
  report["expert_placement"] = placement.fingerprint;
  print_line(fmt::format("# experts: {}{}{}", layout.experts_text(),
                         placement.none() ? ""
                                          : fmt::format(", slots by map {} of epoch {}",
                                                        excerpt(placement.fingerprint), placement.epoch),
                         layout.quantizer ? ", " + quantizer_name(*layout.quantizer) : ""));
  print_report(table.text());
  print_line(fmt::format("# weightcast inspect {} lists its parameters", shards.front().path));
  if (json != nullptr) json->write(json_report(report));
}

}  // namespace weightcast
