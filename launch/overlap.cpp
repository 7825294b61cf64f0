#include "launch/overlap.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <system_error>

#include "core/error.hpp"

namespace weightcast {

void require_other_place(const std::string& option, const std::string& output, const Checkpoint& checkpoint) {
  namespace fs = std::filesystem;
  for (const CheckpointFile& file : checkpoint.files) {
    const fs::path path(file.path);
    const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
    std::error_code error;
    if (fs::equivalent(output, path, error)) {
      throw UsageError(fmt::format("{} {}: is a file of the source; name another", option, output));
    }
    if (fs::equivalent(output, folder, error)) {
      throw UsageError(
          fmt::format("{} {}: holds {} of the source, which would be replaced or removed; name another "
                      "folder",
                      option, output, path.filename().string()));
    }
  }
}

}  // namespace weightcast
