#include "storage/output_lock.hpp"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <ctime>
#include <filesystem>
#include <system_error>
#include <utility>

#include "core/error.hpp"
#include "core/text.hpp"
#include "storage/hidden_names.hpp"
#include "storage/input_file.hpp"
#include "storage/unfinished.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;

/// What every lock file begins with.
constexpr std::string_view kBegin = "weightcast job: ";

/// Who this process is, the same whenever it asks: so it knows its own locks.
std::string own_line(const std::string& command) {
  static const std::time_t since = std::time(nullptr);
  static const std::string number = fresh_id();
  std::array<char, 256> host{"unknown"};
  ::gethostname(host.data(), host.size() - 1);
  return fmt::format("{}{} on host {}, process {}, since {:%Y-%m-%d %H:%M:%S} UTC, number {}", kBegin,
                     command, host.data(), ::getpid(), fmt::gmtime(since), number);
}

std::string first_line(int fd) {
  std::array<char, 512> text{};
  const ssize_t got = ::pread(fd, text.data(), text.size(), 0);
  const std::string_view all(text.data(), got > 0 ? static_cast<std::size_t>(got) : 0);
  return std::string(all.substr(0, all.find('\n')));
}

bool same_file(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

}  // namespace

OutputLock::OutputLock(std::string lock_path, const std::string& option, const std::string& command)
    : path_(std::move(lock_path)) {
  std::error_code error;
  const std::string folder = directory_of(path_);
  if (fs::create_directories(folder, error)) made_folder_ = folder;
  if (error || !fs::is_directory(folder, error)) return;
  try {
    acquire(option, command);
  } catch (...) {
    close();
    throw;
  }
}

OutputLock::~OutputLock() {
  struct stat mine {};
  struct stat there {};
  if (fd_ >= 0 && ::fstat(fd_, &mine) == 0 && ::lstat(path_.c_str(), &there) == 0 && same_file(mine, there)) {
    ::unlink(path_.c_str());
  }
  forget_unfinished(this);
  close();
  // Nothing was written into it, then.
  if (!made_folder_.empty()) ::rmdir(made_folder_.c_str());
}

void OutputLock::acquire(const std::string& option, const std::string& command) {
  const std::string own = own_line(command);
  // A holder that ends removes the file, so that what was opened may have lost its name meanwhile.
  constexpr int kMostTries = 100;
  for (int tries = 0; tries < kMostTries; ++tries) {
    if (!open()) return;
    struct stat mine {};
    struct stat there {};
    const bool regular = ::fstat(fd_, &mine) == 0 && S_ISREG(mine.st_mode);
    const std::string line = regular ? first_line(fd_) : "";
    if (!regular || (mine.st_size != 0 && !line.starts_with(kBegin))) {
      throw IoError(fmt::format("{}: {} is no lock file; remove it or name another place", option, path_));
    }
    const int error = lock();
    if (error == EWOULDBLOCK) {
      if (line == own) return close();
      throw IoError(
          fmt::format("{}: another job is writing there ({}); wait for its end or name another place", option,
                      line.empty() ? "it has not said yet who it is" : printable(line)));
    }
    if (error != 0) {
      // Nobody is kept out by it.
      if (mine.st_size == 0) ::unlink(path_.c_str());
      return give_up(error);
    }
    if (::lstat(path_.c_str(), &there) == 0 && same_file(mine, there)) return say_holder(own);
    close();
  }
  throw IoError(fmt::format("{}: {} changes all the time; other jobs are writing there: name another place",
                            option, path_));
}

bool OutputLock::open() {
  constexpr int kFlags = O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
  fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | kFlags, 0666);
  // Another user's can be locked, if not written.
  if (fd_ < 0 && (errno == EACCES || errno == EROFS)) fd_ = ::open(path_.c_str(), O_RDONLY | kFlags);
  if (fd_ >= 0) return true;
  const int error = errno;
  struct stat there {};
  if (::lstat(path_.c_str(), &there) == 0) {
    throw IoError(fmt::format("cannot open the lock file {}: {}; if no other job is writing there, remove it",
                              path_, system_error_text(error)));
  }
  give_up(error);
  return false;
}

int OutputLock::lock() const {
  int error = 0;
  do {
    error = ::flock(fd_, LOCK_EX | LOCK_NB) != 0 ? errno : 0;
  } while (error == EINTR);
  return error;
}

void OutputLock::say_holder(const std::string& line) const {
  note_unfinished(this, {"", path_, "", true});
  // The lock counts, whether or not this can be written.
  const std::string text = line + "\n";
  if (::ftruncate(fd_, 0) == 0 && ::pwrite(fd_, text.data(), text.size(), 0) < 0) return;
}

void OutputLock::give_up(int error) {
  note_ = fmt::format("{} cannot be locked: {}; see to it that no other job writes there", path_,
                      system_error_text(error));
  close();
}

void OutputLock::close() {
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

std::string folder_lock(const std::string& directory) {
  return (fs::path(directory) / ".weightcast.lock").string();
}

std::string file_lock(const std::string& path) {
  return (fs::path(path).parent_path() / fmt::format(".{}.lock", fs::path(path).filename().string()))
      .string();
}

}  // namespace weightcast
