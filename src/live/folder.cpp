#include "live/folder.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string_view>
#include <tuple>
#include <utility>

#include "core/json_text.hpp"
#include "storage/input_file.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;

constexpr std::string_view kCommit = "commit-";

/// The number of `engine-12.json`; nothing for another name.
std::optional<std::int64_t> number_in(std::string_view name, std::string_view prefix) {
  constexpr std::string_view kEnd = ".json";
  if (!name.starts_with(prefix) || !name.ends_with(kEnd)) return std::nullopt;
  std::int64_t number = 0;
  const char* const from = name.data() + prefix.size();
  const char* const to = name.data() + name.size() - kEnd.size();
  const auto [end, error] = std::from_chars(from, to, number);
  // As the program writes it, so that two names are two numbers.
  if (error != std::errc() || end != to || number < 0 || std::to_string(number) != std::string_view(from, to))
    return std::nullopt;
  return number;
}

/// Calls `visit` with the name of every file. Throws IoError.
template <typename Visit>
void for_each_name(const std::string& directory, Visit visit) {
  std::error_code error;
  fs::directory_iterator entry(directory, error);
  for (const fs::directory_iterator end; !error && entry != end; entry.increment(error)) {
    visit(entry->path().filename().string());
  }
  if (!error) return;
  throw IoError(fmt::format("{}: {}; {}", directory, error.message(),
                            error == std::errc::permission_denied
                                ? "run it as the user who has published there"
                                : "name the folder of manifests"));
}

std::int64_t age_of(const std::string& path) {
  using namespace std::chrono;
  std::error_code error;
  const auto written = fs::last_write_time(path, error);
  if (error) return 0;
  return std::max<std::int64_t>(0,
                                duration_cast<seconds>(fs::file_time_type::clock::now() - written).count());
}

/// The names of manifests of these roles, by role and rank; they are not read. Throws IoError.
std::vector<FoundManifest> named_in(const std::string& directory, std::initializer_list<Role> roles) {
  std::vector<FoundManifest> all;
  for_each_name(directory, [&](const std::string& name) {
    for (const Role role : roles) {
      const auto rank = number_in(name, std::string(role_name(role)) + "-");
      if (!rank) continue;
      FoundManifest found;
      found.path = manifest_path(directory, role, *rank);
      found.role = role;
      found.rank = *rank;
      all.push_back(std::move(found));
    }
  });
  std::sort(all.begin(), all.end(), [](const FoundManifest& a, const FoundManifest& b) {
    return std::tuple(a.role, a.rank) < std::tuple(b.role, b.rank);
  });
  return all;
}

/// `engine-0.json says that there are 4`
std::string number_said_by(const Manifest& manifest) {
  return fmt::format("{} says that there are {}", manifest.path, manifest.ranks);
}

Manifest read_own(const FoundManifest& found) {
  Manifest manifest = read_manifest(found.path);
  if (manifest.role == found.role && manifest.rank == found.rank) return manifest;
  throw InputError(fmt::format("{}: says that it is {} {}; let that rank publish again", found.path,
                               role_name(manifest.role), manifest.rank));
}

/// What a record says of a partial update. Throws InputError.
Choice choice_in(const nlohmann::json& partial, const std::string& path) {
  Choice choice;
  const auto refuse = [&](const char* field) {
    throw InputError(
        fmt::format("{}: '{}' of 'partial' is missing or not what it should be; it is no record of a commit: "
                    "remove the file",
                    path, field));
  };
  const auto take = [&](const char* field, std::int64_t& number) {
    const auto found = partial.is_object() ? partial.find(field) : partial.end();
    if (found == partial.end() || !found->is_number_unsigned() || found->get<std::uint64_t>() > INT64_MAX) {
      refuse(field);
    }
    number = found->get<std::int64_t>();
  };
  take("tensors", choice.tensors);
  take("bytes", choice.bytes);
  take("staying_tensors", choice.staying_tensors);
  take("staying_bytes", choice.staying_bytes);
  const auto id = partial.find("choice");
  if (id == partial.end() || !id->is_string()) refuse("choice");
  choice.id = id->get<std::string>();
  return choice;
}

/// Fills in what the file says. Throws InputError, IoError.
void read_record(const std::string& path, CommitRecord& record) {
  constexpr std::int64_t kMostBytes = 4096;
  const std::string text = read_text_file(path, kMostBytes);
  // Whoever makes a void one may die before its word is there.
  if (text.empty() || text.front() == 'v') return;
  const auto object = parse_json(text, path);
  const auto version = object.find("version");
  if (version == object.end() || !version->is_number_integer())
    throw InputError(path + ": 'version' is no whole number; it is no record of a commit: remove the file");
  if (object.contains("partial")) record.partial = choice_in(object["partial"], path);
  record.version = version->get<std::int64_t>();
  record.expert_placement = ExpertPlacement().fingerprint();  // of updates that do not say otherwise
  const auto epoch = object.find("expert_epoch");
  if (epoch != object.end() && epoch->is_number_integer()) record.expert_epoch = epoch->get<std::int64_t>();
  for (const auto& [field, into] : {std::pair("origin", &record.origin),
                                    {"names", &record.names},
                                    {"expert_placement", &record.expert_placement}}) {
    const auto found = object.find(field);
    if (found != object.end() && found->is_string()) *into = found->get<std::string>();
  }
}

}  // namespace

std::vector<FoundManifest> find_manifests(const std::string& directory) {
  std::vector<FoundManifest> all = named_in(directory, {Role::kTrainer, Role::kEngine});
  for (FoundManifest& found : all) {
    found.age = age_of(found.path);
    try {
      found.manifest = read_own(found);
    } catch (const Error& error) {
      found.wrong = error;
    }
  }
  return all;
}

void refuse_empty(const std::string& directory) {
  throw IoError(directory +
                ": has no manifest (trainer-<n>.json, engine-<n>.json); wait until trainers and engines have "
                "published there");
}

void refuse_missing(const std::string& directory, Role role, std::int64_t rank, const std::string& because) {
  throw IoError(
      fmt::format("{}: is missing, though {}; wait until all have published (serve --wait SECONDS does)",
                  manifest_path(directory, role, rank), because));
}

std::vector<Manifest> read_manifests(const std::string& directory, Role role) {
  std::vector<Manifest> manifests;
  for (const FoundManifest& found : named_in(directory, {role})) manifests.push_back(read_own(found));
  for (std::size_t i = 0; i < manifests.size(); ++i) {
    const Manifest& first = manifests.front();
    const Manifest& manifest = manifests[i];
    if (manifest.ranks != first.ranks) {
      throw InputError(fmt::format("{}: says that there are {}, {} that there are {}; let all publish again",
                                   manifest.path, manifest.ranks, first.path, first.ranks));
    }
    if (manifest.rank == static_cast<std::int64_t>(i)) continue;
    refuse_missing(directory, role, static_cast<std::int64_t>(i), number_said_by(first));
  }
  if (!manifests.empty() && static_cast<std::int64_t>(manifests.size()) < manifests.front().ranks) {
    refuse_missing(directory, role, static_cast<std::int64_t>(manifests.size()),
                   number_said_by(manifests.front()));
  }
  return manifests;
}

bool placed_as(const CommitRecord& record, const ExpertPlacement& placement) {
  return record.expert_epoch == placement.epoch && record.expert_placement == placement.fingerprint();
}

bool brings(const CommitRecord& record, const std::string& names, const Choice* choice) {
  if (record.names != names) return false;
  return !record.partial || (choice != nullptr && record.partial->id == choice->id);
}

nlohmann::ordered_json choice_json(const Choice& choice) {
  return {{"tensors", choice.tensors},
          {"bytes", choice.bytes},
          {"staying_tensors", choice.staying_tensors},
          {"staying_bytes", choice.staying_bytes},
          {"choice", choice.id}};
}

std::string origin_text(std::uint64_t origin) {
  return fmt::format("{:016x}", origin);
}

std::string commit_path(const std::string& directory, std::uint64_t update) {
  return fmt::format("{}/{}{}.json", directory, kCommit, update);
}

std::vector<UnfinishedManifest> unfinished_manifests(const std::string& directory) {
  constexpr std::size_t kDigits = 16;
  std::vector<UnfinishedManifest> all;
  for_each_name(directory, [&](const std::string& name) {
    if (name.size() <= kDigits || name[name.size() - kDigits - 1] != '.') return;
    const std::string of = name.substr(0, name.size() - kDigits - 1);
    if (!number_in(of, "engine-") && !number_in(of, "trainer-")) return;
    UnfinishedManifest manifest;
    const char* const end = name.data() + name.size();
    const auto [stop, error] = std::from_chars(end - kDigits, end, manifest.generation, kDigits);
    if (error != std::errc() || stop != end) return;
    manifest.path = directory + "/" + name;
    manifest.age = age_of(manifest.path);
    all.push_back(std::move(manifest));
  });
  return all;
}

std::vector<std::string> unnamed_records(const std::string& directory) {
  constexpr std::string_view kEnd = ".new";
  std::vector<std::string> all;
  for_each_name(directory, [&](const std::string& name) {
    if (name.ends_with(kEnd) && number_in(name.substr(0, name.size() - kEnd.size()), kCommit))
      all.push_back(directory + "/" + name);
  });
  return all;
}

std::vector<std::uint64_t> updates_recorded(const std::string& directory) {
  std::vector<std::uint64_t> updates;
  for_each_name(directory, [&](const std::string& name) {
    if (const auto update = number_in(name, kCommit)) updates.push_back(static_cast<std::uint64_t>(*update));
  });
  std::sort(updates.begin(), updates.end(), std::greater<>());
  return updates;
}

std::vector<CommitRecord> find_commits(const std::string& directory) {
  std::vector<CommitRecord> records;
  for (const std::uint64_t update : updates_recorded(directory)) {
    CommitRecord record;
    record.update = update;
    try {
      read_record(commit_path(directory, update), record);
    } catch (const Error& error) {
      record.wrong = error;
    }
    records.push_back(std::move(record));
  }
  return records;
}

}  // namespace weightcast
