#include "storage/partial_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

#include "core/error.hpp"
#include "core/units.hpp"
#include "storage/hidden_names.hpp"
#include "storage/input_file.hpp"
#include "storage/rename.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;

// One system call moves a little less than 2 GiB at most.
constexpr std::size_t kMaxWrite = std::size_t{1} << 30;

[[noreturn]] void fail_for_space(const std::string& path, std::int64_t needed, int error) {
  throw IoError(fmt::format("cannot write {}: {} ({} needed); free some space or choose another folder", path,
                            system_error_text(error), format_bytes(needed)));
}

}  // namespace

PartialFile::PartialFile(const std::string& final_path, const std::string& id)
    : FileReplacement(final_path, id) {
  if (!fs::path(final_path).has_filename()) {
    throw IoError(fmt::format("'{}' does not name a file to write; add a name", final_path));
  }
  require_replaceable();
  fd_ = create_partial();
  keep_in_sight(fd_);
}

PartialFile::~PartialFile() {
  abandon();
  if (fd_ >= 0) ::close(fd_);
}

std::string PartialFile::path_of_open_file() const {
  std::string path = fmt::format("/proc/self/fd/{}", fd_);
  struct stat there {};
  if (::stat(path.c_str(), &there) != 0) {
    throw IoError(fmt::format("cannot write {}: {} is not there; mount /proc", final_path(), path));
  }
  return path;
}

struct stat PartialFile::status() const {
  struct stat status {};
  if (::fstat(fd_, &status) != 0) fail_at("look at the file beside", final_path(), errno);
  return status;
}

std::int64_t PartialFile::size() const {
  return status().st_size;
}

void PartialFile::take_rights(const struct stat& old) {
  const struct stat mine = status();
  mode_t mode = old.st_mode & 0777;
  // Only the superuser may give a file away. Where it cannot have the old one's group either, the members of
  // the group that it has may do no more than anybody.
  constexpr uid_t kSameOwner = static_cast<uid_t>(-1);
  if (::fchown(fd_, old.st_uid, old.st_gid) != 0 && mine.st_gid != old.st_gid &&
      ::fchown(fd_, kSameOwner, old.st_gid) != 0) {
    mode &= S_IRWXU | S_IRWXO | (mode & S_IRWXO) << 3;
  }
  // Some file systems keep no modes, and refuse to set them.
  if ((status().st_mode & 0777) == mode) return;
  if (::fchmod(fd_, mode) != 0) fail_at("set the permissions of", final_path(), errno);
}

void PartialFile::reserve(std::int64_t bytes) {
  if (bytes <= 0) return;
  int error = 0;
  do {
    // Not posix_fallocate, which writes to every block where the file system cannot reserve.
    error = ::fallocate(fd_, 0, 0, bytes) != 0 ? errno : 0;
  } while (error == EINTR);
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) fail_for_space(final_path(), bytes, error);
  if (error != 0 && error != EOPNOTSUPP && error != EINVAL && error != ENOSYS) {
    fail_at("reserve space for", final_path(), error);
  }
  if (error != 0 && ::lseek(fd_, 0, SEEK_END) < bytes && ::ftruncate(fd_, bytes) != 0) {
    fail_at("set the size of", final_path(), errno);
  }
}

void PartialFile::write_at(std::int64_t offset, std::span<const std::byte> data) {
  dirty_.store(true, std::memory_order_relaxed);
  while (!data.empty()) {
    const ssize_t put = ::pwrite(fd_, data.data(), std::min(data.size(), kMaxWrite), offset);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)) {
      fail_for_space(final_path(), static_cast<std::int64_t>(data.size()), errno);
    }
    if (put <= 0) fail_at("write", final_path(), put < 0 ? errno : EIO);
    offset += put;
    data = data.subspan(static_cast<std::size_t>(put));
  }
}

void PartialFile::flush() {
  if (!dirty_.exchange(false)) return;
  if (::fsync(fd_) != 0) {
    const int error = errno;
    dirty_ = true;
    fail_at("flush", final_path(), error);
  }
}

void PartialFile::prepare() {
  const struct stat mine = status();
  if (!is_name_of(partial_path(), mine)) fail_for_stranger();
  require_replaceable();
  if (const auto old = require_as_seen(); old && S_ISREG(old->st_mode)) take_rights(*old);
  promise(identity_of(mine));
}

void PartialFile::fail_for_stranger() const {
  throw IoError(
      fmt::format("cannot write {}: {} was removed or replaced by somebody else; look for who does that",
                  final_path(), partial_path()));
}

void PartialFile::require_replaceable() const {
  struct stat there {};
  if (::lstat(final_path().c_str(), &there) != 0) return;
  std::error_code ignored;
  if (fs::is_directory(final_path(), ignored)) fail_at("write", final_path(), EISDIR);
  if (S_ISREG(there.st_mode) || S_ISLNK(there.st_mode)) return;
  throw IoError(fmt::format("cannot write {}: what is there is no file; remove it", final_path()));
}

bool PartialFile::keep_old_file() {
  // Where there are no second names it would be moved away instead, and a folder with all that is in it.
  require_replaceable();
  struct stat old {};
  if (::link(final_path().c_str(), old_path().c_str()) == 0) {
    if (::lstat(old_path().c_str(), &old) == 0 && identity_of(old) == seen()) return true;
    ::unlink(old_path().c_str());
    fail_for_other();
  }
  const int error = errno;
  if (error == ENOENT) return false;
  // Network file systems may have done what they say has failed.
  if (error != EEXIST) ::unlink(old_path().c_str());
  if (!means_no_links(error)) fail_at("keep the old", final_path(), error);
  move_away();
  return false;
}

void PartialFile::place() {
  if (!is_promised()) prepare();
  const struct stat mine = status();
  // Another job may have done away with it: then the old file is that job's.
  if (!is_name_of(partial_path(), mine)) fail_for_stranger();
  try {
    const int error = keep_old_file() ? take_name_of(seen(), partial_path(), final_path())
                                      : take_free_name(partial_path(), final_path());
    if (error == EEXIST) fail_for_other();
    if (error != 0) fail_at(fmt::format("rename {} to", partial_path()), final_path(), error);
    if (!is_name_of(final_path(), mine)) fail_for_other();
    // Closed here, because network file systems report late write errors then.
    if (::close(std::exchange(fd_, -1)) != 0 && errno != EINTR) fail_at("close", final_path(), errno);
    sync_directory(directory_of(final_path()));
  } catch (const IoError&) {
    take_back();
    throw;
  }
}

void make_folder_of(const std::string& path) {
  std::error_code error;
  fs::create_directories(directory_of(path), error);
  if (error) fail_at("make the folder of", path, error.value());
}

void require_file_size(const std::string& path, std::int64_t bytes) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && static_cast<rlim_t>(bytes) > limit.rlim_cur) {
    fail_for_space(path, bytes, EFBIG);
  }
}

void require_space(const std::string& path, std::int64_t bytes) {
  struct statvfs status {};
  std::string folder = directory_of(path);
  // The nearest one that is there.
  while (::statvfs(folder.c_str(), &status) != 0) {
    if (errno != ENOENT) return;
    const std::string above = directory_of(folder);
    if (above == folder) return;
    folder = above;
  }
  // Some file systems do not say; those report no blocks at all.
  if (status.f_blocks == 0) return;
  const auto block = static_cast<std::uint64_t>(status.f_frsize);
  // What the file system keeps for the superuser is no room for weights, and may be no room at all.
  if (static_cast<std::uint64_t>(bytes) / block > status.f_bavail) fail_for_space(path, bytes, ENOSPC);
}

}  // namespace weightcast
