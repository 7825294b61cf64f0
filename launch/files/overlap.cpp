#include "launch/files/overlap.hpp"

#include <fmt/format.h>
#include <sys/stat.h>

#include <filesystem>
#include <system_error>
#include <utility>

#include "core/error.hpp"
#include "storage/folder_savings.hpp"
#include "storage/hidden_names.hpp"
#include "storage/model_files.hpp"
#include "storage/rank_file.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;

/// What comes into the folder that is the source would be a second saving, and the next one who names the
/// folder could not tell which is meant.
[[noreturn]] void refuse_source(const std::string& option, const std::string& folder) {
  throw UsageError(fmt::format("{}: {} is the source's folder, which would hold two savings; name another",
                               option, folder));
}

}  // namespace

void require_other_place(const std::string& option, const std::string& output, const Checkpoint& checkpoint) {
  for (const CheckpointFile& file : checkpoint.files) {
    std::error_code error;
    // The name that was given may be a link, or lie in a folder of links.
    for (const fs::path& path : {fs::path(file.path), fs::canonical(file.path, error)}) {
      if (fs::equivalent(output, path, error)) {
        throw UsageError(fmt::format("{} {}: is a file of the source; name another", option, output));
      }
      if (fs::equivalent(output, directory_of(path.string()), error)) {
        throw UsageError(
            fmt::format("{} {}: holds {} of the source, which would be replaced or removed; name another "
                        "folder",
                        option, output, path.filename().string()));
      }
    }
  }
  const std::string folder = directory_of(output);
  std::error_code error;
  if (ends_as_hdf5(output) && fs::is_directory(checkpoint.path, error) &&
      fs::equivalent(folder, checkpoint.path, error)) {
    refuse_source(fmt::format("{} {}", option, output), folder);
  }
}

void require_other_place_than_model(const std::string& option, const std::string& output,
                                    const std::string& model) {
  if (model.empty()) return;
  std::error_code error;
  const fs::path file = fs::is_directory(model, error) ? fs::path(model) / "config.json" : fs::path(model);
  for (const fs::path& path : {file, fs::canonical(file, error)}) {
    if (!fs::equivalent(output, path, error) && !fs::equivalent(output, directory_of(path.string()), error))
      continue;
    throw UsageError(
        fmt::format("{} {}: holds --model {}, and what lies beside it would be replaced; name another",
                    option, output, model));
  }
}

SinkFolders::SinkFolders(ShardPlace place, const std::set<std::string>& folders) : place_(std::move(place)) {
  for (const std::string& folder : folders) {
    struct stat there {};
    if (::stat(folder.c_str(), &there) != 0 || !S_ISDIR(there.st_mode)) continue;
    folders_.emplace(std::pair(there.st_dev, there.st_ino), folder);
    if (const std::string other = safetensors_in(folder); !other.empty()) {
      throw UsageError(
          fmt::format("{}: the folder would hold two savings, for {} is there; name another folder",
                      place_.option(folder), other));
    }
  }
}

std::string SinkFolders::folder_at(const std::string& path) const {
  struct stat there {};
  if (::stat(path.c_str(), &there) != 0) return "";
  const auto found = folders_.find({there.st_dev, there.st_ino});
  return found == folders_.end() ? "" : found->second;
}

void SinkFolders::require_no_shard_of(const Checkpoint& checkpoint) const {
  for (const CheckpointFile& file : checkpoint.files) {
    std::error_code error;
    // The name that was given may be a link in the folder, or one that leads to a file in it.
    for (const fs::path& path : {fs::path(file.path), fs::canonical(file.path, error)}) {
      if (!parse_rank_file(kShardStem, path.filename().string())) continue;
      const std::string folder = folder_at(directory_of(path.string()));
      if (folder.empty()) continue;
      throw UsageError(
          fmt::format("{}: holds {} of the source, which would be replaced or removed; name another folder",
                      place_.option(folder), path.filename().string()));
    }
  }
  if (const std::string folder = folder_at(checkpoint.path); !folder.empty())
    refuse_source(place_.option(folder), folder);
}

}  // namespace weightcast
