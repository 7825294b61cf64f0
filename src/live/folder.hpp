#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "live/manifest.hpp"

namespace weightcast {

/// The file of a manifest in a folder, and what it says.
struct FoundManifest {
  std::string path;
  Role role = Role::kTrainer;
  std::int64_t rank = 0;             ///< as its name says
  std::int64_t age = 0;              ///< seconds since it was published
  std::optional<Manifest> manifest;  ///< nothing when it is wrong
  std::optional<Error> wrong;
};

/// All manifests of a folder, the trainers' and then the engines', by rank. One that is wrong does not hide
/// the others. Throws IoError when there is no such folder.
std::vector<FoundManifest> find_manifests(const std::string& directory);

/// Throws InputError: the folder has no manifest.
[[noreturn]] void refuse_empty(const std::string& directory);

/// All manifests of a role, by rank; empty when there is none. Throws as read_manifest(); IoError when there
/// is no such folder, InputError when ranks are missing or disagree about how many they are.
std::vector<Manifest> read_manifests(const std::string& directory, Role role);

/// What the job step or, where it died, an engine has decided of an update (live/live_update.hpp).
struct CommitRecord {
  std::uint64_t update = 0;
  std::optional<std::int64_t> version;  ///< nothing when the update is void: none of it counts
  std::string origin;                   ///< whose weights these are (origin_text()); empty: not said
  std::optional<Error> wrong;           ///< the file says neither
};

/// How a record writes where weights come from: 16 hexadecimal digits.
std::string origin_text(std::uint64_t origin);

/// `DIR/commit-12.json`, where the record of an update is.
std::string commit_path(const std::string& directory, std::uint64_t update);

/// The updates of which a folder has a record, the latest first; the records are not read. Throws IoError
/// when there is no such folder.
std::vector<std::uint64_t> updates_recorded(const std::string& directory);

/// The records of a folder, the latest update first. Throws IoError when there is no such folder.
std::vector<CommitRecord> find_commits(const std::string& directory);

}  // namespace weightcast
