#include "report/update_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/text.hpp"
#include "core/units.hpp"
#include "report/json_report.hpp"
#include "report/lines.hpp"
#include "report/table.hpp"

namespace weightcast {

namespace {

using nlohmann::ordered_json;

/// One format for head, units and rows, so that rows printed one by one stay aligned; 80 characters.
constexpr const char* kRow = "{:>9} {:>7} {:>6} {:>6} {:>6} {:>6} {:>6} {:>7}  {:>7}  {:>8}\n";

/// What continues a line of the header.
constexpr const char* kContinued = "#         ";

ordered_json seconds_json(const UpdateSeconds& s, const JobReport& report) {
  return {{"startup", report.startup_seconds},
          {"plan", report.plan_seconds},
          {"read", s.read},
          {"pack", s.pack},
          {"transport", s.transport},
          {"unpack", s.unpack},
          {"verify", s.verify},
          {"write", s.write},
          {"update", s.update}};
}

/// The last column: whether the update was compared, and whether it brought all of the model.
const char* verified_text(const UpdateRecord& update) {
  if (update.partial) return update.verified ? "partial" : "no, part";
  return update.verified ? "yes" : "no";
}

ordered_json partial_json(const JobReport& report) {
  if (!report.partial) return nullptr;
  const PartialRecord& partial = *report.partial;
  return {{"tensors", partial.tensors},
          {"bytes", partial.bytes},
          {"staying_tensors", partial.staying_tensors},
          {"staying_bytes", partial.staying_bytes}};
}

ordered_json left_out_json(const JobReport& report) {
  if (!report.left_out) return nullptr;
  return {{"tensors", report.left_out->tensors},
          {"bytes", report.left_out->bytes},
          {"names", report.left_out->text}};
}

ordered_json bound_json(const BoundRecord& bound) {
  return {{"what", bound.what}, {"gb_s", bound.gb_s}, {"achieved", bound.achieved}};
}

std::string ways_text(const DirectWays& ways) {
  std::string text =
      fmt::format("# ways    {} directly, {}; {} over NCCL, {}\n", counted(ways.direct_routes, "route"),
                  format_bytes(ways.direct_bytes), ways.nccl_routes, format_bytes(ways.nccl_bytes));
  constexpr std::size_t kMost = 5;
  for (std::size_t i = 0; i < std::min(kMost, ways.obstacles.size()); ++i) {
    text += fmt::format("# ways    {}\n", printable(ways.obstacles[i]));
  }
  if (ways.obstacles.size() > kMost)
    text += fmt::format("# ways    and {} pairs more\n", ways.obstacles.size() - kMost);
  return text;
}

ordered_json ways_json(const std::optional<DirectWays>& ways) {
  if (!ways) return nullptr;
  return {{"direct_routes", ways->direct_routes},
          {"direct_bytes", ways->direct_bytes},
          {"nccl_routes", ways->nccl_routes},
          {"nccl_bytes", ways->nccl_bytes},
          {"obstacles", ways->obstacles}};
}

}  // namespace

std::string header_text(const JobReport& report) {
  std::string text =
      wrapped(fmt::format("# {} {}\n", printable(report.versions), report.command), kLineWidth, kContinued);
  text += fmt::format("# model   {} tensors, {}: {}\n", report.tensors, format_bytes(report.model_bytes),
                      printable(report.model));
  std::string rest;
  if (report.partial) rest += fmt::format("# partial {}\n", report.partial->text);
  if (report.left_out) rest += fmt::format("# unsent  of the source {}\n", printable(report.left_out->text));
  rest += fmt::format("# layout  {}\n", printable(report.layout));
  rest += fmt::format("# limits  {}\n", printable(report.limits));
  rest += fmt::format("# plan    {}, {}, {} on the wire, staging {} a rank,\n{}hash {}\n",
                      counted(report.routes, "route"), counted(report.buckets, "bucket"),
                      format_bytes(report.wire_bytes), format_bytes(report.staging_bytes_per_rank),
                      kContinued, report.plan_hash);
  if (report.ways) rest += ways_text(*report.ways);
  if (report.loader_bytes > 0) {
    rest += fmt::format("# landing {} directly, {} through the engines' own loaders\n",
                        format_bytes(report.direct_bytes), format_bytes(report.loader_bytes));
  }
  rest += fmt::format("# start   {:.3f} s", report.startup_seconds);
  for (const auto& [name, seconds] : report.start_parts) rest += fmt::format(", {} {:.3f} s", name, seconds);
  text += wrapped(rest + "\n#\n", kLineWidth, kContinued);
  Table ranks({"rank", "host", "device", "role"}, {0, 1, 2, 3});
  for (const RankInfo& rank : report.ranks) {
    ranks.add({std::to_string(rank.rank), rank.host, rank.device, rank.role});
  }
  return text + ranks.text("# ");
}

std::string figure_text(double figure) {
  const int decimals = figure < 9.99995   ? 4
                       : figure < 99.9995 ? 3
                       : figure < 999.995 ? 2
                       : figure < 9999.95 ? 1
                                          : 0;
  return fmt::format("{:.{}f}", figure, decimals);
}

std::string update_columns() {
  const auto head = [](const std::string& row) {
    return fmt::format("#{}\n", row.substr(1, row.find_last_not_of(" \n")));
  };
  return "#\n" +
         head(fmt::format(kRow, "version", "source", "wire", "unpack", "verify", "write", "update", "rate",
                          "slowest", "verified")) +
         head(fmt::format(kRow, "", "s", "s", "s", "s", "s", "s", "GB/s", "", ""));
}

std::string update_text(const UpdateRecord& update) {
  const UpdateSeconds& s = update.seconds;
  return fmt::format(kRow, update.weight_version, figure_text(std::max(s.read, s.pack)),
                     figure_text(s.transport), figure_text(s.unpack), figure_text(s.verify),
                     figure_text(s.write), figure_text(s.update), figure_text(update.rate_gb_s),
                     update.bound.stage, verified_text(update));
}

std::string report_json(const JobReport& report, const std::string& status, const std::string& error) {
  const UpdateRecord last = report.updates.empty() ? UpdateRecord{} : report.updates.back();
  ordered_json root;
  root["weightcast"] = report.versions;
  root["command"] = report.command;
  root["status"] = status;
  root["weight_version"] = report.updates.empty() ? ordered_json(nullptr) : ordered_json(last.weight_version);
  auto& ranks = root["ranks"] = ordered_json::array();
  for (const RankInfo& rank : report.ranks) {
    ranks.push_back({{"rank", rank.rank}, {"role", rank.role}, {"host", rank.host}, {"device", rank.device}});
  }
  root["model"] = {{"tensors", report.tensors}, {"bytes", report.model_bytes}};
  root["partial"] = partial_json(report);
  root["left_out"] = left_out_json(report);
  root["wire_bytes"] = report.wire_bytes;
  root["buckets"] = report.buckets;
  root["routes"] = report.routes;
  root["staging_bytes_per_rank"] = report.staging_bytes_per_rank;
  root["ways"] = ways_json(report.ways);
  root["landing"] = {{"direct_bytes", report.direct_bytes}, {"loader_bytes", report.loader_bytes}};
  root["plan_hash"] = report.plan_hash;
  root["expert_epoch"] = report.expert_epoch;
  root["expert_placement"] = report.expert_placement;
  root["seconds"] = seconds_json(last.seconds, report);
  auto& parts = root["start_parts"] = ordered_json::object();
  for (const auto& [name, seconds] : report.start_parts) parts[name] = seconds;
  root["rate_gb_s"] = last.rate_gb_s;
  root["limit"] = bound_json(last.bound);
  root["verified"] = last.verified;
  auto& updates = root["updates"] = ordered_json::array();
  for (const UpdateRecord& update : report.updates) {
    updates.push_back({{"weight_version", update.weight_version},
                       {"source", update.source},
                       {"seconds", seconds_json(update.seconds, report)},
                       {"rate_gb_s", update.rate_gb_s},
                       {"limit", bound_json(update.bound)},
                       {"verified", update.verified}});
  }
  root["error"] = error.empty() ? ordered_json(nullptr) : ordered_json(error);
  return json_report(root);
}

}  // namespace weightcast
