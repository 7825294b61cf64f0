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

namespace weightcast {

namespace {

namespace fs = std::filesystem;

// One system call moves a little less than 2 GiB at most.
constexpr std::size_t kMaxWrite = std::size_t{1} << 30;

[[noreturn]] void fail(std::string_view what, const std::string& path, int error,
                       std::source_location where = std::source_location::current()) {
  throw SystemRefusal(fmt::format("cannot {} {}: {}", what, path, system_error_text(error)), error, where);
}

[[noreturn]] void fail_for_space(const std::string& path, std::int64_t needed, int error,
                                 std::source_location where = std::source_location::current()) {
  throw IoError(fmt::format("cannot write {}: {} ({} needed); free some space or choose another folder", path,
                            system_error_text(error), format_bytes(needed)),
                where);
}

/// What to do where no file can be created.
std::string_view remedy(int error) {
  switch (error) {
    case EACCES:
    case EPERM:
    case EROFS:
      return "choose a folder that can be written";
    case ENOSPC:
    case EDQUOT:
      return "free some space or choose another folder";
    case EMFILE:
    case ENFILE:
      return "raise the limit of open files (ulimit -n)";
    case ENAMETOOLONG:
      return "choose a shorter name";
    default:
      return "check its folder";
  }
}

[[noreturn]] void fail_to_create(const std::string& path, int error,
                                 std::source_location where = std::source_location::current()) {
  throw SystemRefusal(
      fmt::format("cannot create a file beside {}: {}; {}", path, system_error_text(error), remedy(error)),
      error, where);
}

/// Whether the path leads to that very file, by itself and not through a link.
bool is_file(const std::string& path, const struct stat& file) {
  struct stat there {};
  return ::lstat(path.c_str(), &there) == 0 && there.st_dev == file.st_dev && there.st_ino == file.st_ino;
}

/// File systems and rules under which a file cannot have a second name.
bool means_no_links(int error) {
  return error == EPERM || error == EOPNOTSUPP || error == ENOSYS || error == EMLINK || error == EXDEV;
}

}  // namespace

PartialFile::PartialFile(std::string final_path, std::string id)
    : final_path_(std::move(final_path)),
      id_(std::move(id)),
      partial_path_(hidden_path(final_path_, id_, kPartial)) {
  const fs::path path(final_path_);
  if (!path.has_filename()) throw IoError(fmt::format("'{}' does not name a file to write", final_path_));
  require_replaceable();
  do {
    fd_ = ::open(partial_path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
  } while (fd_ < 0 && errno == EINTR);
  if (fd_ < 0) fail_to_create(final_path_, errno);
  note_unfinished(this, state());
}

PartialFile::~PartialFile() {
  if (fd_ >= 0) ::close(fd_);
  if (stage_ != Stage::kKept) undo(state());
  forget_unfinished(this);
}

UnfinishedFile PartialFile::state() const {
  return {final_path_, stage_ == Stage::kPlaced ? "" : partial_path_, old_path_,
          stage_ == Stage::kWriting || stage_ == Stage::kTakenBack};
}

void PartialFile::enter(Stage stage) {
  stage_ = stage;
  note_unfinished(this, state());
}

std::string PartialFile::path_of_open_file() const {
  std::string path = fmt::format("/proc/self/fd/{}", fd_);
  struct stat there {};
  if (::stat(path.c_str(), &there) != 0) {
    throw IoError(fmt::format("cannot write {}: {} is not there; mount /proc", final_path_, path));
  }
  return path;
}

struct stat PartialFile::status() const {
  struct stat status {};
  if (::fstat(fd_, &status) != 0) fail("look at the file beside", final_path_, errno);
  return status;
}

std::int64_t PartialFile::size() const {
  return status().st_size;
}

void PartialFile::take_mode(mode_t mode) {
  if (::fchmod(fd_, mode & 07777) != 0) fail("set the permissions of", final_path_, errno);
}

void PartialFile::reserve(std::int64_t bytes) {
  if (bytes <= 0) return;
  int error = 0;
  do {
    // Not posix_fallocate, which writes to every block where the file system cannot reserve.
    error = ::fallocate(fd_, 0, 0, bytes) != 0 ? errno : 0;
  } while (error == EINTR);
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) fail_for_space(final_path_, bytes, error);
  if (error != 0 && error != EOPNOTSUPP && error != EINVAL && error != ENOSYS) {
    fail("reserve space for", final_path_, error);
  }
  if (error != 0 && ::lseek(fd_, 0, SEEK_END) < bytes && ::ftruncate(fd_, bytes) != 0) {
    fail("set the size of", final_path_, errno);
  }
}

void PartialFile::write_at(std::int64_t offset, std::span<const std::byte> data) {
  dirty_.store(true, std::memory_order_relaxed);
  while (!data.empty()) {
    const ssize_t put = ::pwrite(fd_, data.data(), std::min(data.size(), kMaxWrite), offset);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)) {
      fail_for_space(final_path_, static_cast<std::int64_t>(data.size()), errno);
    }
    if (put <= 0) fail("write", final_path_, put < 0 ? errno : EIO);
    offset += put;
    data = data.subspan(static_cast<std::size_t>(put));
  }
}

void PartialFile::flush() {
  if (!dirty_.exchange(false)) return;
  if (::fsync(fd_) != 0) {
    const int error = errno;
    dirty_ = true;
    fail("flush", final_path_, error);
  }
}

void PartialFile::check() const {
  if (!is_file(partial_path_, status())) fail_for_stranger();
}

void PartialFile::fail_for_stranger() const {
  throw IoError(
      fmt::format("cannot write {}: {} was removed or replaced by somebody else; look for who does that",
                  final_path_, partial_path_));
}

void PartialFile::require_replaceable() const {
  struct stat there {};
  if (::lstat(final_path_.c_str(), &there) != 0) {
    // A hidden name is never too long.
    if (errno == ENAMETOOLONG) fail_to_create(final_path_, ENAMETOOLONG);
    return;
  }
  std::error_code ignored;
  if (fs::is_directory(final_path_, ignored)) fail("write", final_path_, EISDIR);
  if (S_ISREG(there.st_mode) || S_ISLNK(there.st_mode)) return;
  throw IoError(fmt::format("cannot write {}: what is there is no file; remove it", final_path_));
}

void PartialFile::keep_old_file() {
  // Where there are no second names it would be moved away instead, and a folder with all that is in it.
  require_replaceable();
  const std::string old_path = hidden_path(final_path_, id_, kOld);
  if (::link(final_path_.c_str(), old_path.c_str()) == 0) {
    old_path_ = old_path;
    return enter(Stage::kWriting);
  }
  const int error = errno;
  if (error == ENOENT) return;
  // Network file systems may have done what they say has failed.
  if (error != EEXIST) ::unlink(old_path.c_str());
  if (!means_no_links(error)) fail("keep the old", final_path_, error);
  if (::rename(final_path_.c_str(), old_path.c_str()) != 0) fail("keep the old", final_path_, errno);
  old_path_ = old_path;
  enter(Stage::kOldMoved);
}

void PartialFile::place() {
  const struct stat mine = status();
  try {
    keep_old_file();
    const int error = ::rename(partial_path_.c_str(), final_path_.c_str()) != 0 ? errno : 0;
    const bool there = is_file(final_path_, mine);
    if (error == 0 || there) enter(Stage::kPlaced);
    if (error != 0) fail(fmt::format("rename {} to", partial_path_), final_path_, error);
    if (!there) fail_for_stranger();
    // Closed here, because network file systems report late write errors then.
    if (::close(std::exchange(fd_, -1)) != 0 && errno != EINTR) fail("close", final_path_, errno);
    sync_directory(directory_of(final_path_));
  } catch (const IoError&) {
    take_back();
    throw;
  }
}

void PartialFile::take_back() {
  UnfinishedFile taken_back = state();
  // It stays until the end: as long as it is there, what others have placed together with it counts as
  // unfinished.
  taken_back.partial_path.clear();
  const bool undone = undo(taken_back);
  const int error = errno;
  const std::string old_path = std::exchange(old_path_, "");
  enter(Stage::kTakenBack);
  if (undone) return;
  throw NotPutBack(
      fmt::format("cannot put {} back: {}; {}", final_path_, system_error_text(error),
                  old_path.empty() ? "remove it" : fmt::format("what was there is {}", old_path)));
}

void PartialFile::keep() noexcept {
  if (!old_path_.empty()) ::unlink(old_path_.c_str());
  stage_ = Stage::kKept;
  forget_unfinished(this);
}

void make_folder_of(const std::string& path) {
  std::error_code error;
  fs::create_directories(directory_of(path), error);
  if (error) fail("make the folder of", path, error.value());
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
  if (static_cast<std::uint64_t>(bytes) / block > status.f_bfree) fail_for_space(path, bytes, ENOSPC);
}

void sync_directory(const std::string& directory) {
  const int fd = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) fail("open the folder", directory, errno);
  const int error = ::fsync(fd) != 0 ? errno : 0;
  ::close(fd);
  // EINVAL: a file system that keeps its names without being asked.
  if (error != 0 && error != EINVAL) fail("flush the folder", directory, error);
}

}  // namespace weightcast
