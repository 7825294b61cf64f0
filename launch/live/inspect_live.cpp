#include "launch/live/inspect_live.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "control/signals.hpp"
#include "core/error.hpp"
#include "core/text.hpp"
#include "core/units.hpp"
#include "launch/serve/ask.hpp"
#include "launch/serve/server_file.hpp"
#include "launch/tensor_choice.hpp"
#include "live/dead_exporters.hpp"
#include "live/expert_table.hpp"
#include "live/folder.hpp"
#include "live/open_block.hpp"
#include "live/slurm_run.hpp"
#include "report/json_report.hpp"
#include "report/log.hpp"
#include "report/table.hpp"
#include "sys/host.hpp"

namespace weightcast {

namespace {

std::string name_of(Role role, std::int64_t rank) {
  return fmt::format("{} {}", role_name(role), rank);
}

/// `4 min`
std::string age_text(std::int64_t seconds) {
  constexpr std::int64_t kMinute = 60;
  constexpr std::int64_t kHour = 60 * kMinute;
  constexpr std::int64_t kDay = 24 * kHour;
  if (seconds < 2 * kMinute) return fmt::format("{} s", seconds);
  if (seconds < 2 * kHour) return fmt::format("{} min", seconds / kMinute);
  if (seconds < 2 * kDay) return fmt::format("{} h", seconds / kHour);
  return fmt::format("{} days", seconds / kDay);
}

std::string memory_text(const Manifest& manifest) {
  const bool shared = std::any_of(manifest.segments.begin(), manifest.segments.end(),
                                  [](const LiveSegment& s) { return s.kind == SegmentKind::kShared; });
  std::vector<std::string> kinds;
  if (const std::string device = manifest.device(); !device.empty()) kinds.push_back(device);
  if (shared) kinds.emplace_back("shared memory");
  if (manifest.window()) kinds.emplace_back("window");
  return kinds.empty() ? "none" : fmt::format("{}", fmt::join(kinds, ", "));
}

std::int64_t bytes_of(const Manifest& manifest) {
  std::int64_t bytes = 0;
  for (const LiveSegment& segment : manifest.segments) bytes += segment.bytes;
  return bytes;
}

/// What this process sees of an exporter's control block.
struct Sight {
  std::string words;
  std::optional<BlockState> state;
  bool lives = false;
  bool dead = false;  ///< for certain
  int updater = 0;
  int mapped_by = 0;
  std::optional<ExpertMap> experts;  ///< of an engine that says where they sit
  std::optional<Error> wrong;
};

/// Where the block cannot be seen, why.
std::string hidden_by(const Manifest& manifest) {
  switch (reach_of(manifest)) {
    case Reach::kOtherHost:
      return "not seen from here";
    case Reach::kOtherBoot:
      return "gone: its host has been started anew since";
    case Reach::kOtherUser:
      return fmt::format("not seen from here: it is of user {}", manifest.uid);
    case Reach::kOtherShm:
      return "not seen from here: it has another /dev/shm, as in another container";
    case Reach::kCopy:
      return "a copy of a manifest in another folder; look there";
    case Reach::kHere:
      break;
  }
  return "";
}

Sight look_at(const Manifest& manifest) {
  Sight sight;
  sight.dead = is_dead(manifest);
  sight.words = hidden_by(manifest);
  if (!sight.words.empty()) return sight;
  try {
    const OpenBlock block(manifest, Access::kRead);
    sight.lives = block.lives();
    sight.state = block.look();
    sight.updater = block.updater();
    sight.mapped_by = block.mapped_by();
  } catch (const Error& wrong) {
    sight.dead = sight.dead || is_dead(manifest);  // by now
    if (sight.dead) {
      // The next exporter of that user has cleared its memory away.
      sight.words = fmt::format("gone: process {} has died, and its state with it", manifest.pid);
      return sight;
    }
    sight.words = wrong.what();
    sight.wrong = wrong;
    return sight;
  }
  sight.words = in_words(*sight.state);
  if (sight.lives && !manifest.expert_table.empty()) {
    try {
      sight.experts = ExpertTable(manifest).read();
      sight.words +=
          fmt::format("; its expert map is of epoch {}: {} slots in {}", sight.experts->placement.epoch,
                      sight.experts->slots, counted(sight.experts->layers(), "layer"));
    } catch (const Error& wrong) {
      sight.wrong = wrong;
      sight.words += fmt::format("; {}", wrong.what());
    }
  }
  if (!sight.lives) {
    sight.words = fmt::format("gone: process {} has died; its last state: {}", manifest.pid, sight.words);
  }
  if (sight.updater != 0) {
    sight.words +=
        fmt::format("; {} ({}) has it for an update", sight.state->owner, process_of(sight.updater));
  }
  if (sight.mapped_by > 0) {
    sight.words +=
        fmt::format("; mapped by {} {}", sight.mapped_by, sight.mapped_by == 1 ? "process" : "processes");
  }
  return sight;
}

nlohmann::ordered_json json_of(const FoundManifest& found, const Sight& sight) {
  const Manifest& manifest = *found.manifest;
  nlohmann::ordered_json entry = {{"role", role_name(manifest.role)},
                                  {"rank", manifest.rank},
                                  {"ranks", manifest.ranks},
                                  {"host", manifest.host},
                                  {"process", manifest.pid},
                                  {"user", manifest.uid},
                                  {"job", manifest.job},
                                  {"restart", manifest.restart},
                                  {"memory", memory_text(manifest)},
                                  {"bytes", bytes_of(manifest)},
                                  {"entries", manifest.entries.size()},
                                  {"layout", manifest.layout},
                                  {"age_seconds", found.age},
                                  {"says", sight.words}};
  if (sight.dead) entry["lives"] = false;
  if (!sight.state) return entry;
  entry["lives"] = sight.lives;
  entry["state"] = in_words(*sight.state);
  entry["update"] = sight.state->update;
  entry["version"] = sight.state->version;
  if (sight.experts) entry["expert_epoch"] = sight.experts->placement.epoch;
  entry["updated_by"] = sight.updater == 0 ? "" : sight.state->owner;
  entry["mapped_by"] = sight.mapped_by;
  return entry;
}

/// `1, 3`
std::string list_of(const std::vector<std::int64_t>& ranks) {
  constexpr std::size_t kMostNamed = 8;
  const auto named = std::span(ranks).first(std::min(ranks.size(), kMostNamed));
  return fmt::format("{}{}", fmt::join(named, ", "), ranks.size() > kMostNamed ? ", …" : "");
}

/// `1 of 4 trainers (missing: 1, 3; gone: 2)`: of those whose manifests can be read, who is not known to be
/// dead.
std::string presence(const std::vector<FoundManifest>& all, const std::set<const FoundManifest*>& dead,
                     Role role) {
  std::set<std::int64_t> there;
  std::set<std::int64_t> said;
  std::vector<std::int64_t> gone;
  for (const FoundManifest& found : all) {
    if (found.role != role) continue;
    there.insert(found.rank);
    if (dead.contains(&found)) gone.push_back(found.rank);
    if (found.manifest) said.insert(found.manifest->ranks);
  }
  const std::string plural = fmt::format("{}s", role_name(role));
  if (there.empty()) return "no " + plural;
  if (said.size() != 1) {
    return fmt::format(
        "{} {}{}", there.size() - gone.size(), plural,
        said.empty() ? "" : fmt::format(", which disagree how many they are ({})", fmt::join(said, ", ")));
  }
  const std::int64_t ranks = *said.begin();
  std::vector<std::string> wanting;
  std::vector<std::int64_t> missing;
  constexpr std::size_t kEnough = 9;  // one more than are named
  for (std::int64_t rank = 0; rank < ranks && missing.size() < kEnough; ++rank) {
    if (!there.contains(rank)) missing.push_back(rank);
  }
  if (!missing.empty()) wanting.push_back("missing: " + list_of(missing));
  if (!gone.empty()) wanting.push_back("gone: " + list_of(gone));
  return fmt::format("{} of {} {}{}", there.size() - gone.size(), ranks, plural,
                     wanting.empty() ? "" : fmt::format(" ({})", fmt::join(wanting, "; ")));
}

/// What there is to say of the folder's server; nothing where it has none.
std::optional<std::string> server_text(const std::string& directory) {
  std::error_code ignored;
  if (!std::filesystem::exists(server_file_path(directory), ignored)) return std::nullopt;
  try {
    const ServerAddress server = read_server_file(directory);
    const std::string who = fmt::format("process {} on {}", server.pid, server.host);
    if (server.host != this_host()) return fmt::format("server: {}, not seen from here", who);
    const bool answers = server.boot_id == this_boot() && is_listened_to(server.socket);
    return answers ? fmt::format("server: {}, takes requests of weightcast trigger {}", who, directory)
                   : fmt::format("server: {}, which is gone or of another user", who);
  } catch (const Error& error) {
    return fmt::format("server: {}", error.what());
  }
}

std::string record_text(const CommitRecord& record) {
  if (record.wrong) return record.wrong->what();
  if (!record.version) return fmt::format("update {} is void: its version was not committed", record.update);
  const bool placed = !placed_as(record, {});
  return fmt::format("version {} was committed by update {}{}{}", *record.version, record.update,
                     placed ? fmt::format(", planned for expert map {} of epoch {}",
                                          excerpt(record.expert_placement), record.expert_epoch)
                            : "",
                     record.partial ? ", a partial one: " + choice_text(*record.partial) : "");
}

/// The records that count: those behind the last commit, and that.
std::vector<CommitRecord> last_commits(const std::string& directory) {
  std::vector<CommitRecord> records = find_commits(directory);
  const auto last = std::find_if(records.begin(), records.end(),
                                 [](const CommitRecord& record) { return record.version.has_value(); });
  if (last != records.end()) records.erase(last + 1, records.end());
  return records;
}

}  // namespace

void inspect_live(const std::string& directory, OutputFile* json) {
  const std::vector<FoundManifest> all = find_manifests(directory);
  if (all.empty()) refuse_empty(directory);
  nlohmann::ordered_json exporters = nlohmann::ordered_json::array();
  nlohmann::ordered_json wrong_files = exporters;
  nlohmann::ordered_json commits = exporters;

  Table table({"exporter", "host", "process", "user", "memory", "bytes", "entries", "layout", "age"});
  std::vector<std::string> lines;
  std::set<const FoundManifest*> dead;
  std::optional<Error> wrong;
  const auto note_wrong = [&](const std::string& path, const Error& error) {
    wrong_files.push_back({{"path", path}, {"error", error.what()}});
    if (!wrong) wrong = error;
  };
  for (const FoundManifest& found : all) {
    if (!found.manifest) {
      lines.push_back(fmt::format("{}: {}", name_of(found.role, found.rank), found.wrong->what()));
      note_wrong(found.path, *found.wrong);
      continue;
    }
    const Manifest& manifest = *found.manifest;
    table.add({fmt::format("{} of {}", name_of(found.role, found.rank), manifest.ranks), manifest.host,
               std::to_string(manifest.pid), std::to_string(manifest.uid), memory_text(manifest),
               format_bytes(bytes_of(manifest)), std::to_string(manifest.entries.size()),
               manifest.layout.empty() ? "-" : manifest.layout, age_text(found.age)});
    const Sight sight = look_at(manifest);
    if (sight.dead) dead.insert(&found);
    if (sight.wrong) note_wrong(found.path, *sight.wrong);
    const std::string run = other_run(manifest);
    lines.push_back(fmt::format("{}: {}{}{}", name_of(found.role, found.rank), sight.words,
                                run.empty() ? "" : "; ", run));
    exporters.push_back(json_of(found, sight));
  }
  require_no_signal("the list was not printed");

  print_line(fmt::format("# live:{}: {}, {}", directory, presence(all, dead, Role::kTrainer),
                         presence(all, dead, Role::kEngine)));
  if (!exporters.empty()) print_report(table.text());
  for (const std::string& line : lines) print_line(line);
  const std::optional<std::string> server = server_text(directory);
  if (server) print_line("# " + *server);
  for (const CommitRecord& record : last_commits(directory)) {
    print_line("# " + record_text(record));
    if (record.wrong) {
      note_wrong(commit_path(directory, record.update), *record.wrong);
      continue;
    }
    nlohmann::ordered_json entry = {{"update", record.update}, {"version", nullptr}, {"partial", nullptr}};
    if (!placed_as(record, {})) {
      entry["expert_epoch"] = record.expert_epoch;
      entry["expert_placement"] = record.expert_placement;
    }
    if (record.version) entry["version"] = *record.version;
    if (record.partial) entry["partial"] = choice_json(*record.partial);
    commits.push_back(std::move(entry));
  }
  if (json != nullptr) {
    json->write(json_report({{"weightcast", "inspect"},
                             {"path", "live:" + directory},
                             {"exporters", exporters},
                             {"wrong", wrong_files},
                             {"commits", commits},
                             {"server", server.value_or("")}}));
  }
  if (wrong) throw Error(*wrong);
}

}  // namespace weightcast
