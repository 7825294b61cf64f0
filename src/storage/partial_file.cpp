#include "storage/partial_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <mutex>
#include <set>
#include <system_error>
#include <utility>

#include "core/error.hpp"
#include "core/units.hpp"
#include "storage/input_file.hpp"
#include "storage/writer.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;

// One system call moves a little less than 2 GiB at most.
constexpr std::size_t kMaxWrite = std::size_t{1} << 30;

[[noreturn]] void fail(std::string_view what, const std::string& path, int error,
                       std::source_location where = std::source_location::current()) {
  throw IoError(fmt::format("cannot {} {}: {}", what, path, system_error_text(error)), where);
}

[[noreturn]] void fail_for_space(const std::string& path, std::int64_t needed, int error,
                                 std::source_location where = std::source_location::current()) {
  throw IoError(fmt::format("cannot write {}: {} ({} needed); free some space or choose another folder", path,
                            system_error_text(error), format_bytes(needed)),
                where);
}

/// The partial files that are there now.
struct Registry {
  std::mutex mutex;
  std::set<std::string> paths;
};

Registry& registry() {
  static Registry registry;
  return registry;
}

}  // namespace

void remove_partial_files() {
  const std::scoped_lock lock(registry().mutex);
  for (const std::string& path : registry().paths) ::unlink(path.c_str());
}

std::string directory_of(const std::string& path) {
  const std::string directory = fs::path(path).parent_path().string();
  return directory.empty() ? "." : directory;
}

PartialFile::PartialFile(std::string final_path) : final_path_(std::move(final_path)) {
  const fs::path path(final_path_);
  if (!path.has_filename()) throw IoError(fmt::format("'{}' does not name a file to write", final_path_));
  partial_path_ = (path.parent_path() / fmt::format(".{}.partial", path.filename().string())).string();
  std::error_code error;
  fs::create_directories(directory_of(final_path_), error);
  if (error) fail("make the folder of", final_path_, error.value());
  if (fs::is_directory(path, error)) fail("write", final_path_, EISDIR);
  // Not merely truncated: a process that outlived its launch may still have the old one open.
  if (::unlink(partial_path_.c_str()) != 0 && errno != ENOENT) fail("replace", partial_path_, errno);
  const std::scoped_lock lock(registry().mutex);
  registry().paths.insert(partial_path_);
}

PartialFile::~PartialFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!renamed_) ::unlink(partial_path_.c_str());
  const std::scoped_lock lock(registry().mutex);
  registry().paths.erase(partial_path_);
}

void PartialFile::open() {
  fd_ = ::open(partial_path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (fd_ < 0) fail("create", partial_path_, errno);
  dirty_ = true;
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

void PartialFile::rename_to_final() {
  if (::rename(partial_path_.c_str(), final_path_.c_str()) != 0) {
    fail(fmt::format("rename {} to", partial_path_), final_path_, errno);
  }
  renamed_ = true;
  // Closing here and not in the destructor, because network file systems report late write errors at close.
  const int fd = std::exchange(fd_, -1);
  if (::close(fd) != 0 && errno != EINTR) fail("close", final_path_, errno);
}

void require_file_size(const std::string& path, std::int64_t bytes) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && static_cast<rlim_t>(bytes) > limit.rlim_cur) {
    fail_for_space(path, bytes, EFBIG);
  }
}

void require_space(const std::string& path, std::int64_t bytes) {
  struct statvfs status {};
  // Some file systems do not say; those report no blocks at all.
  if (::statvfs(directory_of(path).c_str(), &status) != 0 || status.f_blocks == 0) return;
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
