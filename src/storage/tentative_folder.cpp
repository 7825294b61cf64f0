#include "storage/tentative_folder.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
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

/// Whether a folder is of a file system that the kernel makes up, in which nobody can make files, whatever
/// the permissions say.
bool is_of_the_kernel(const std::string& path) {
  constexpr std::array<std::int64_t, 11> kMadeUp{
      PROC_SUPER_MAGIC, SYSFS_MAGIC,  CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, DEBUGFS_MAGIC, TRACEFS_MAGIC,
      SECURITYFS_MAGIC, BPF_FS_MAGIC, SELINUX_MAGIC,      DEVPTS_SUPER_MAGIC,  EFIVARFS_MAGIC};
  struct statfs system {};
  return ::statfs(path.c_str(), &system) == 0 &&
         std::ranges::find(kMadeUp, static_cast<std::int64_t>(system.f_type)) != kMadeUp.end();
}

[[noreturn]] void fail_to_make(const std::string& path, const std::error_code& error) {
  throw SystemRefusal(fmt::format("cannot make the folder {}: {}; name another place, or see to it that it "
                                  "can be made",
                                  path, error.message()),
                      error.value());
}

[[noreturn]] void fail_for_link(const std::string& folder, const std::string& link) {
  throw SystemRefusal(fmt::format("cannot make the folder {}: {} is a link to something that is not there; "
                                  "remove the link, or make what it leads to",
                                  folder, link == folder ? "its name" : link),
                      EEXIST);
}

}  // namespace

TentativeFolder::TentativeFolder(const std::string& path)
    : TentativeFolder(path, count_missing(plain(path))) {
  std::error_code error;
  if (fs::is_symlink(path_, error) && !fs::exists(path_, error)) fail_for_link(path_, path_);
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
  const bool is_link = S_ISLNK(found.st_mode);
  if (::stat(there.c_str(), &found) != 0) {
    if (is_link && errno == ENOENT) fail_for_link(folder, there);
    fail(errno);
  }
  if (!S_ISDIR(found.st_mode)) fail(ENOTDIR);
  if (is_of_the_kernel(there)) fail(EPERM);
  if (::faccessat(AT_FDCWD, there.c_str(), W_OK | X_OK, AT_EACCESS) == 0) return;
  const int error = errno;
  if (there != folder) fail(error);
  throw SystemRefusal(fmt::format("cannot create a file in {}: {}; choose a folder that can be written",
                                  folder, system_error_text(error)),
                      error);
}

}  // namespace weightcast
