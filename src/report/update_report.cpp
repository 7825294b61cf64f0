#include "report/update_report.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "core/text.hpp"
#include "core/units.hpp"
#include "report/json_report.hpp"
#include "report/table.hpp"

namespace weightcast {

namespace {

using nlohmann::ordered_json;

/// One format for head, units and rows, so that rows printed one by one stay aligned.
constexpr const char* kRow = "{:>9}  {:>10}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}  {:>8}  {:>8}  {}\n";

std::string seconds_text(double seconds) {
  return fmt::format("{:.4f}", seconds);
}

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

ordered_json limit_json(const LimitRecord& limit) {
  return {{"what", limit.what}, {"gb_s", limit.gb_s}, {"achieved", limit.achieved}};
}

}  // namespace

std::string header_text(const JobReport& report) {
  std::string text = fmt::format("# {} {}\n", printable(report.versions), report.command);
  text += fmt::format("# model   {}, {} tensors, {}\n", printable(report.model), report.tensors,
                      format_bytes(report.model_bytes));
  text += fmt::format("# layout  {}\n", printable(report.layout));
  text += fmt::format("# plan    {} routes, {} buckets, {} on the wire, staging {} a rank, hash {}\n",
                      report.routes, report.buckets, format_bytes(report.wire_bytes),
                      format_bytes(report.staging_bytes_per_rank), report.plan_hash);
  if (report.loader_bytes > 0) {
    text += fmt::format("# landing {} directly, {} through the engines' own loaders\n",
                        format_bytes(report.direct_bytes), format_bytes(report.loader_bytes));
  }
  text += fmt::format("# start   {:.3f} s", report.startup_seconds);
  for (const auto& [name, seconds] : report.start_parts) text += fmt::format(", {} {:.3f} s", name, seconds);
  text += "\n#\n";
  Table ranks({"rank", "role", "host", "device"});
  for (const RankInfo& rank : report.ranks) {
    ranks.add({std::to_string(rank.rank), rank.role, rank.host, rank.device});
  }
  text += ranks.text("# ") + "#\n";
  const auto head = [](const std::string& row) { return fmt::format("#{}", row.substr(1)); };
  text += head(fmt::format(kRow, "version", "bytes", "read", "pack", "transport", "unpack", "verify",
                           "update", "rate", "reached", "limit, verified"));
  text += head(fmt::format(kRow, "", "B", "s", "s", "s", "s", "s", "s", "GB/s", "%", ""));
  return text;
}

std::string update_text(const UpdateRecord& update, std::int64_t model_bytes) {
  const UpdateSeconds& s = update.seconds;
  return fmt::format(kRow, update.weight_version, model_bytes, seconds_text(s.read), seconds_text(s.pack),
                     seconds_text(s.transport), seconds_text(s.unpack), seconds_text(s.verify),
                     seconds_text(s.update), fmt::format("{:.3f}", update.rate_gb_s),
                     fmt::format("{:.1f}", 100 * update.limit.achieved),
                     fmt::format("{} {:.3f} GB/s, {}", update.limit.what, update.limit.gb_s,
                                 update.verified ? "verified" : "not verified"));
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
  root["wire_bytes"] = report.wire_bytes;
  root["buckets"] = report.buckets;
  root["routes"] = report.routes;
  root["staging_bytes_per_rank"] = report.staging_bytes_per_rank;
  root["landing"] = {{"direct_bytes", report.direct_bytes}, {"loader_bytes", report.loader_bytes}};
  root["plan_hash"] = report.plan_hash;
  root["seconds"] = seconds_json(last.seconds, report);
  auto& parts = root["start_parts"] = ordered_json::object();
  for (const auto& [name, seconds] : report.start_parts) parts[name] = seconds;
  root["rate_gb_s"] = last.rate_gb_s;
  root["limit"] = limit_json(last.limit);
  root["verified"] = last.verified;
  auto& updates = root["updates"] = ordered_json::array();
  for (const UpdateRecord& update : report.updates) {
    updates.push_back({{"weight_version", update.weight_version},
                       {"source", update.source},
                       {"seconds", seconds_json(update.seconds, report)},
                       {"rate_gb_s", update.rate_gb_s},
                       {"limit", limit_json(update.limit)},
                       {"verified", update.verified}});
  }
  root["error"] = error.empty() ? ordered_json(nullptr) : ordered_json(error);
  return json_report(root);
}

}  // namespace weightcast
