#include "storage/input_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <system_error>
#include <utility>

#include "core/error.hpp"

namespace weightcast {

namespace {

/// Parts of which the first may have been read to some extent.
struct Unread {
  std::span<const ReadPart> parts;
  std::size_t filled = 0;  ///< bytes of the first part

  std::span<std::byte> first() const { return parts.front().to.subspan(filled); }

  void advance(std::size_t bytes) {
    while (!parts.empty() && bytes >= first().size()) {
      bytes -= first().size();
      parts = parts.subspan(1);
      filled = 0;
    }
    filled += bytes;
  }
};

/// Reads as much as one system call does. What lies behind each other in memory, too, is one vector.
ssize_t read_some(int fd, std::int64_t offset, const Unread& unread) {
  constexpr std::size_t kMostVectors = 64;
  std::array<iovec, kMostVectors> vectors;  // NOLINT: filled below as far as it is read
  std::size_t count = 0;
  std::byte* end = nullptr;
  for (std::size_t i = 0; i < unread.parts.size(); ++i) {
    const std::span<std::byte> to = i == 0 ? unread.first() : unread.parts[i].to;
    if (count > 0 && to.data() == end) {
      vectors.at(count - 1).iov_len += to.size();
    } else if (count < kMostVectors) {
      vectors.at(count++) = {to.data(), to.size()};
    } else {
      break;
    }
    end = to.data() + to.size();
  }
  return count == 1 ? ::pread(fd, vectors[0].iov_base, vectors[0].iov_len, offset)
                    : ::preadv(fd, vectors.data(), static_cast<int>(count), offset);
}

}  // namespace

std::string system_error_text(int error) {
  return std::generic_category().message(error);
}

InputFile::InputFile(const std::string& path)
    : path_(path),
      // Not blocking: opening a pipe that nobody writes to would last for ever.
      fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
  struct stat there {};
  // A file of which another host holds a lease: that takes a moment.
  if (fd_ < 0 && errno == EWOULDBLOCK && ::stat(path.c_str(), &there) == 0 && S_ISREG(there.st_mode)) {
    fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  }
  if (fd_ < 0) {
    throw IoError(fmt::format("cannot open {}: {}; check that it is there and readable on every node", path,
                              system_error_text(errno)));
  }
  struct stat status {};
  const int error = ::fstat(fd_, &status) != 0 ? errno : 0;
  if (error == 0 && S_ISREG(status.st_mode)) {
    identity_ = identity_of(status);
    return;
  }
  ::close(fd_);
  throw IoError(
      error != 0 ? fmt::format("cannot look at {}: {}; check its file system", path, system_error_text(error))
                 : fmt::format("{} is no regular file; put one in its place", path));
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), identity_(other.identity_) {}

InputFile::~InputFile() {
  if (fd_ >= 0) ::close(fd_);
}

FileIdentity InputFile::identity_now() const {
  return identity_of(fd_, path_);
}

bool InputFile::has_writer() const {
  // A network file system gives no lease either where nobody writes.
  constexpr std::array<std::uint64_t, 6> kLocal{EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC,  BTRFS_SUPER_MAGIC,
                                                TMPFS_MAGIC,      F2FS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC};
  struct statfs system {};
  if (::fstatfs(fd_, &system) != 0 ||
      std::ranges::find(kLocal, static_cast<std::uint32_t>(system.f_type)) == kLocal.end()) {
    return false;
  }
  // Who opens it for writing just now waits for the lease to go, and we get a signal that nobody heeds.
  if (::fcntl(fd_, F_SETSIG, SIGURG) != 0) return false;
  if (::fcntl(fd_, F_SETLEASE, F_RDLCK) != 0) return errno == EAGAIN;
  ::fcntl(fd_, F_SETLEASE, F_UNLCK);
  return false;
}

bool InputFile::has_holes() const {
  const off_t hole = ::lseek(fd_, 0, SEEK_HOLE);  // every file ends in one
  return hole >= 0 && hole < identity_now().size;
}

bool InputFile::keeps_time_of_mappings() const {
  struct statfs system {};
  return ::fstatfs(fd_, &system) != 0 || static_cast<std::uint32_t>(system.f_type) != TMPFS_MAGIC;
}

FileIdentity identity_of(int descriptor, const std::string& path) {
  struct stat status {};
  if (::fstat(descriptor, &status) != 0) {
    throw IoError(
        fmt::format("cannot look at {}: {}; check its file system", path, system_error_text(errno)));
  }
  return identity_of(status);
}

FileIdentity identity_of(const struct stat& status) {
  constexpr std::int64_t kSecond = 1'000'000'000;
  return {status.st_ino, status.st_size, status.st_mtim.tv_sec * kSecond + status.st_mtim.tv_nsec};
}

bool is_named(const std::string& path) {
  struct stat there {};
  if (::lstat(path.c_str(), &there) == 0) return true;
  // No file has a name that is too long to look for.
  if (errno == ENOENT || errno == ENOTDIR || errno == ENAMETOOLONG) return false;
  throw IoError(fmt::format("cannot look at {}: {}; check the permissions of its folders", path,
                            system_error_text(errno)));
}

std::string first_bytes(const InputFile& file, std::int64_t most) {
  std::string bytes(static_cast<std::size_t>(std::min(most, file.size())), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(bytes)), "its first bytes");
  return bytes;
}

void InputFile::read_at(std::int64_t offset, std::span<std::byte> to, std::string_view what) const {
  const ReadPart part{to, what};
  read_at(offset, {&part, 1});
}

void InputFile::read_at(std::int64_t offset, std::span<const ReadPart> parts) const {
  Unread unread{parts};
  for (unread.advance(0); !unread.parts.empty();) {
    const ssize_t got = read_some(fd_, offset, unread);
    if (got < 0 && errno == EINTR) continue;
    const std::string_view what = unread.parts.front().what;
    if (got < 0) {
      throw IoError(fmt::format("cannot read {} ({}): {}; check its disk and its file system", path_, what,
                                system_error_text(errno)));
    }
    if (got == 0) {
      throw IoError(fmt::format(
          "{} ends at byte {}, {} bytes before the end of {}; the file was cut short after it was "
          "opened, or is truncated: copy it again",
          path_, offset, unread.first().size(), what));
    }
    offset += got;
    unread.advance(static_cast<std::size_t>(got));
  }
}

std::string read_text_file(const std::string& path, std::int64_t most_bytes) {
  const InputFile file(path);
  if (file.size() > most_bytes) {
    throw InputError(fmt::format("{}: {} bytes, but a text of its kind has at most {}; name the right file",
                                 path, file.size(), most_bytes));
  }
  std::string text(static_cast<std::size_t>(file.size()), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(text)), "the text");
  return text;
}

}  // namespace weightcast
