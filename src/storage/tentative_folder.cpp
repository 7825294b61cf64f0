#include "storage/tentative_folder.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <system_error>
#include <utility>

#include "storage/hidden_names.hpp"
#include "storage/replacement.hpp"
#include "storage/unfinished.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;

/// The path without a slash at its end, whose parent else would be the folder itself.
std::string plain(const std::string& path) {
  const fs::path whole(path);
  return (whole.has_filename() ? whole : whole.parent_path()).string();
}

int count_missing(const std::string& path) {
  std::error_code ignored;
  if (fs::symlink_status(path, ignored).type() != fs::file_type::not_found) return 0;
  const std::string above = directory_of(path);
  return above == path ? 1 : 1 + count_missing(above);
}

}  // namespace

TentativeFolder::TentativeFolder(const std::string& path)
    : TentativeFolder(path, count_missing(plain(path))) {
  std::error_code error;
  fs::create_directories(path_, error);
  if (error) {
    throw SystemRefusal(fmt::format("cannot make the folder {}: {}; name another place, or see to it that it "
                                    "can be made",
                                    path_, error.message()),
                        error.value());
  }
}

TentativeFolder::TentativeFolder(const std::string& path, int levels) : path_(plain(path)), levels_(levels) {
  note_unfinished(this, UnfinishedFolder{path_, levels_});
}

TentativeFolder::~TentativeFolder() {
  undo(UnfinishedFolder{path_, levels_});
  forget_unfinished(this);
}

}  // namespace weightcast
