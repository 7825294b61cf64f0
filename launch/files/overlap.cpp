#include "launch/files/overlap.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <system_error>

#include "core/error.hpp"
#include "storage/hidden_names.hpp"
#include "storage/shard_name.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;

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
}

}  // namespace weightcast
