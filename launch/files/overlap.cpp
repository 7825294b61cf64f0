#include "launch/files/overlap.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <system_error>

#include "core/error.hpp"
#include "storage/hidden_names.hpp"
#include "storage/model_files.hpp"
#include "storage/shard_name.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;

/// Throws UsageError for a folder that is the source: what comes there would be a second saving, and the next
/// one who names the folder could not tell which is meant.
void require_not_the_source(const std::string& option, const std::string& folder,
                            const Checkpoint& checkpoint) {
  std::error_code error;
  if (!fs::is_directory(checkpoint.path, error) || !fs::equivalent(folder, checkpoint.path, error)) return;
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
  if (ends_as_hdf5(output)) require_not_the_source(option + " " + output, directory_of(output), checkpoint);
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

void require_no_shard_of_sink(const std::string& folder, const Checkpoint& checkpoint) {
  for (const CheckpointFile& file : checkpoint.files) {
    std::error_code error;
    // The name that was given may be a link in the folder, or one that leads to a file in it.
    for (const fs::path& path : {fs::path(file.path), fs::canonical(file.path, error)}) {
      if (!rank_of_shard(path.filename().string()) ||
          !fs::equivalent(folder, directory_of(path.string()), error))
        continue;
      throw UsageError(fmt::format(
          "--sink hdf5:{}: holds {} of the source, which would be replaced or removed; name another "
          "folder",
          folder, path.filename().string()));
    }
  }
  require_not_the_source("--sink hdf5:" + folder, folder, checkpoint);
}

}  // namespace weightcast
