#include "storage/tentative_folder.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "storage/hidden_names.hpp"
#include "storage/input_file.hpp"
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

[[noreturn]] void fail_to_make(const std::string& path, const std::error_code& error) {
  throw SystemRefusal(fmt::format("cannot make the folder {}: {}; name another place, or see to it that it "
                                  "can be made",
                                  path, error.message()),
                      error.value());
}

}  // namespace

TentativeFolder::TentativeFolder(const std::string& path)
    : TentativeFolder(path, count_missing(plain(path))) {
  std::error_code error;
  fs::create_directories(path_, error);
  if (error) fail_to_make(path_, error);
}

TentativeFolder::TentativeFolder(const std::string& path, int levels) : path_(plain(path)), levels_(levels) {
  note_unfinished(this, UnfinishedFolder{path_, levels_});
}

TentativeFolder::~TentativeFolder() {
  undo(UnfinishedFolder{path_, levels_});
  forget_unfinished(this);
}

void require_folder(const std::string& path) {
  const std::string folder = plain(path);
  const auto fail = [&](int error) { fail_to_make(folder, std::error_code(error, std::generic_category())); };
  // What is there of it: itself, or the nearest folder above.
  std::string there = folder;
  struct stat found {};
  while (::lstat(there.c_str(), &found) != 0) {
    const std::string above = directory_of(there);
    if (errno != ENOENT || above == there) fail(errno);
    there = above;
  }
  // A link that leads nowhere takes the folder's name.
  if (::stat(there.c_str(), &found) != 0) fail(errno == ENOENT ? EEXIST : errno);
  if (!S_ISDIR(found.st_mode)) fail(ENOTDIR);
  if (::faccessat(AT_FDCWD, there.c_str(), W_OK | X_OK, AT_EACCESS) == 0) return;
  const int error = errno;
  if (there != folder) fail(error);
  throw SystemRefusal(fmt::format("cannot create a file in {}: {}; choose a folder that can be written",
                                  folder, system_error_text(error)),
                      error);
}

}  // namespace weightcast
