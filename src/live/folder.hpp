#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "live/manifest.hpp"
#include "model/family.hpp"

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

/// Throws IoError: the folder has no manifest.
[[noreturn]] void refuse_empty(const std::string& directory);

/// Throws IoError: that rank has published nothing. `because` says who would have it there.
[[noreturn]] void refuse_missing(const std::string& directory, Role role, std::int64_t rank,
                                 const std::string& because);

/// All manifests of a role, by rank; empty when there is none. Throws as read_manifest(); IoError when there
/// is no such folder or ranks are missing, InputError when they disagree about how many they are.
std::vector<Manifest> read_manifests(const std::string& directory, Role role);

/// What the job step or, where it died, an engine has decided of an update (live/live_update.hpp).
struct CommitRecord {
  std::uint64_t update = 0;
  std::optional<std::int64_t> version;  ///< nothing when the update is void: none of it counts
  std::string origin;                   ///< whose weights these are (origin_text()); empty: not said
  std::string names;                    ///< of all of the model (Catalog::hash_of_names()); empty: not said
  std::int64_t expert_epoch = 0;        ///< of the map by which experts were placed
  std::string expert_placement;         ///< what it is called (ExpertPlacement::fingerprint())
  std::optional<Choice> partial;        ///< what of these the update brought; nothing: all of them
  std::optional<Error> wrong;           ///< the file says neither
};

/// A manifest that has not got its name, because its exporter is about to give it, or was killed before.
struct UnfinishedManifest {
  std::string path;              ///< `DIR/engine-3.json.00ff00ff00ff00ff`
  std::uint64_t generation = 0;  ///< as its name says
  std::int64_t age = 0;          ///< seconds since something was written to it
};

/// Those of a folder. Throws IoError when there is no such folder.
std::vector<UnfinishedManifest> unfinished_manifests(const std::string& directory);

/// The records that have not got their name, `DIR/commit-12.json.new`: of an update that is under way, or
/// whose job step was killed. Throws IoError when there is no such folder.
std::vector<std::string> unnamed_records(const std::string& directory);

/// Whether the update of a record brought all that `choice` sends, null for all, of the model whose tensors'
/// names have that hash: with draft layers it is another one than without.
bool brings(const CommitRecord& record, const std::string& names, const Choice* choice);

/// Whether the update of a record placed experts so.
bool placed_as(const CommitRecord& record, const ExpertPlacement& placement);

/// How records, and reports, write what is sent of a model and what stays.
nlohmann::ordered_json choice_json(const Choice& choice);

/// How a record writes where weights come from: 16 hexadecimal digits.
std::string origin_text(std::uint64_t origin);

/// `DIR/commit-12.json`, where the record of an update is; `.new` behind it before it has its name.
std::string commit_path(const std::string& directory, std::uint64_t update);

/// The updates of which a folder has a record, the latest first; the records are not read. Throws IoError
/// when there is no such folder.
std::vector<std::uint64_t> updates_recorded(const std::string& directory);

/// The records of a folder, the latest update first. Throws IoError when there is no such folder.
std::vector<CommitRecord> find_commits(const std::string& directory);

}  // namespace weightcast
