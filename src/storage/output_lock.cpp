#include "storage/output_lock.hpp"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <ctime>
#include <filesystem>
#include <map>
#include <mutex>
#include <optional>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/text.hpp"
#include "storage/folder_savings.hpp"
#include "storage/hidden_names.hpp"
#include "storage/input_file.hpp"
#include "storage/model_files.hpp"
#include "storage/rename.hpp"
#include "storage/replacement.hpp"
#include "storage/unfinished.hpp"
#include "sys/host.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;

/// What every lock file begins with.
constexpr std::string_view kBegin = "weightcast job: ";

/// A file on its device.
using FileNumber = std::pair<dev_t, ino_t>;

/// Who this process is.
std::string own_line(const std::string& command) {
  return fmt::format("{}{} on host {}, process {}, since {:%Y-%m-%d %H:%M:%S} UTC\n", kBegin, command,
                     this_host(), ::getpid(), fmt::gmtime(std::time(nullptr)));
}

/// Whether the files of a folder may be locked by users who can neither write nor remove them.
bool keeps_files_of_others(const std::string& folder) {
  struct stat there {};
  return ::stat(folder.c_str(), &there) != 0 || (there.st_mode & S_ISVTX) != 0;
}

/// File systems that have no locks.
bool means_no_locks(int error) {
  return error == ENOLCK || error == EOPNOTSUPP || error == ENOSYS || error == EINVAL;
}

/// Folders in which nobody can make a file, so that nobody can make the other ones either.
bool lets_nobody_write(int error) {
  return error == EACCES || error == EPERM || error == EROFS;
}

constexpr std::string_view kFolderLock = ".weightcast.lock";
constexpr std::string_view kLockEnd = ".lock";

/// `.x.h5.lock`
bool is_hdf5_lock(const std::string& name) {
  return name.size() > 1 + kLockEnd.size() && name.starts_with('.') && name.ends_with(kLockEnd) &&
         ends_as_hdf5(std::string_view(name).substr(0, name.size() - kLockEnd.size()));
}

/// Throws the error for a lock that a job has which says so, or says nothing that is certain.
[[noreturn]] void fail_for_holder(const std::string& option, const std::string& text) {
  throw IoError(
      fmt::format("{}: another job is writing there ({}); wait for its end or name another place", option,
                  text.empty() ? "it cannot say who it is" : printable(text.substr(0, text.find('\n')))));
}

[[noreturn]] void fail_to_open(const std::string& option, const std::string& path, int error) {
  throw IoError(
      fmt::format("{}: cannot open the lock file {}: {}; if no other job is writing there, remove it", option,
                  path, system_error_text(error)));
}

}  // namespace

class OutputLock::File {
 public:
  /// Opens the file, and with O_CREAT makes it when it is missing. `error()` is 0 when that went well.
  explicit File(std::string path, int make = O_CREAT) : path_(std::move(path)) {
    constexpr int kFlags = O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    do {
      fd_ = ::open(path_.c_str(), O_RDWR | make | kFlags, 0666);
    } while (fd_ < 0 && errno == EINTR);
    if (fd_ < 0) error_ = errno;
    // Another user's can be locked, if not written.
    if (error_ == EACCES || error_ == EROFS) fd_ = ::open(path_.c_str(), O_RDONLY | kFlags);
    writable_ = error_ == 0;
    if (fd_ >= 0) error_ = ::fstat(fd_, &status_) != 0 ? errno : 0;
  }

  ~File() {
    if (held_) {
      undo(UnfinishedLock{path_, status_, fd_});
      forget_unfinished(this);
      const std::scoped_lock lock(all().mutex);
      all().files.erase(number());
    }
    if (fd_ >= 0) ::close(fd_);
  }

  File(const File&) = delete;
  File& operator=(const File&) = delete;

  int error() const { return error_; }
  /// Whether it can be a lock at all. None has a second name, under which it would be somebody's file.
  bool may_be_lock() const { return S_ISREG(status_.st_mode) && status_.st_nlink <= 1; }

  /// What it says. Throws IoError, which names the option, when it is no lock.
  std::string lock_text(const std::string& option) const {
    std::string said = may_be_lock() ? text() : "";
    if (may_be_lock() && (said.empty() || said.starts_with(kBegin))) return said;
    throw IoError(fmt::format("{}: {} is no lock file; remove it or name another place", option, path_));
  }

  /// The beginning of its text. Throws IoError.
  std::string text() const {
    std::array<char, 512> text{};
    const ssize_t got = ::pread(fd_, text.data(), text.size(), 0);
    if (got >= 0) return {text.data(), static_cast<std::size_t>(got)};
    throw IoError(fmt::format("cannot read the lock file {}: {}; if no other job is writing there, remove it",
                              path_, system_error_text(errno)));
  }

  /// Whether another process has locked the file at a path, which need not be there.
  static bool is_locked_elsewhere(const std::string& path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) return false;
    struct stat there {};
    const bool locked = ::fstat(fd, &there) == 0 && S_ISREG(there.st_mode) &&
                        ::flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    ::close(fd);
    const std::scoped_lock lock(all().mutex);
    return locked && !all().files.contains({there.st_dev, there.st_ino});
  }

  /// Whether its name still leads to it.
  bool has_its_name() const { return is_name_of(path_, status_); }

  /// The system's error for locking it, 0 when that went well.
  int lock() const {
    // Who looks whether a neighbour's file is locked has it for a moment.
    constexpr int kTries = 4;
    constexpr auto kMoment = std::chrono::milliseconds(5);
    int error = EINTR;
    for (int tries = 0; error == EINTR || (error == EWOULDBLOCK && tries < kTries);) {
      if (error == EWOULDBLOCK) {
        std::this_thread::sleep_for(kMoment);
        ++tries;
      }
      error = ::flock(fd_, LOCK_EX | LOCK_NB) != 0 ? errno : 0;
    }
    return error;
  }

  /// Removes it, so that a new one can be made in its place.
  bool remove() const { return ::unlink(path_.c_str()) == 0; }

  bool is_writable() const { return writable_; }

  /// Puts the holder's line in place of what it says. It counts, whether or not this can be written.
  void say(const std::string& line) const {
    // Not the other way round: who reads meanwhile finds what such a file begins with.
    const bool said = ::pwrite(fd_, line.data(), line.size(), 0) == static_cast<ssize_t>(line.size());
    if (::ftruncate(fd_, said ? static_cast<off_t>(line.size()) : 0) != 0) return;
  }

  /// From now on it goes with this object, and the folder after it; other locks of this process find it.
  static void hold(const std::shared_ptr<File>& file, std::shared_ptr<TentativeFolder> folder) {
    file->held_ = true;
    file->folder_ = std::move(folder);
    note_unfinished(file.get(), UnfinishedLock{file->path_, file->status_, file->fd_});
    const std::scoped_lock lock(all().mutex);
    all().files[file->number()] = file;
  }

  /// The one of this process that holds the same lock, if there is one.
  std::shared_ptr<File> held_already() const {
    const std::scoped_lock lock(all().mutex);
    const auto found = all().files.find(number());
    return found == all().files.end() ? nullptr : found->second.lock();
  }

 private:
  struct All {
    std::mutex mutex;
    std::map<FileNumber, std::weak_ptr<File>> files;
  };
  static All& all() {
    static All all;
    return all;
  }

  FileNumber number() const { return {status_.st_dev, status_.st_ino}; }

  std::string path_;
  int fd_ = -1;
  int error_ = 0;
  bool writable_ = false;
  bool held_ = false;
  struct stat status_ {};
  std::shared_ptr<TentativeFolder> folder_;
};

OutputLock::OutputLock(std::string lock_path, const std::string& option, const std::string& command)
    : path_(std::move(lock_path)), option_(option) {
  using namespace std::chrono_literals;
  const std::string own = own_line(command);
  constexpr int kMostWaits = 5;
  int waits = 0;
  std::optional<std::string> said;  // by who holds it
  // A holder that ends removes the file, so that what was opened may have lost its name meanwhile.
  constexpr int kMostTries = 100;
  for (int tries = 0; tries < kMostTries; ++tries) {
    std::shared_ptr<File> file;
    try {
      file = open();
    } catch (const SystemRefusal& refusal) {
      // Another job, which had made the folder, has removed it in between.
      if (refusal.number() == ENOENT && tries + 1 < kMostTries) continue;
      throw IoError(fmt::format("{}: {}", option, refusal.what()));
    }
    if (file == nullptr) return;
    const std::string text = file->lock_text(option);
    file_ = file->held_already();
    if (file_ != nullptr) return;
    const int error = file->lock();
    if (error == EWOULDBLOCK) {
      // Who has just locked it may not have said so yet, and what it says be of the one before.
      if (said != text && ++waits < kMostWaits) {
        said = text;
        std::this_thread::sleep_for(100ms);
        continue;
      }
      const bool certain = said == text && !keeps_files_of_others(directory_of(path_));
      fail_for_holder(option, certain ? text : "");
    }
    if (error != 0) {
      // Nobody is kept out by it.
      if (text.empty()) file->remove();
      if (!means_no_locks(error)) {
        throw IoError(fmt::format("{}: cannot lock {}: {}; try again, or name another place", option, path_,
                                  system_error_text(error)));
      }
      give_up(error);
      return;
    }
    if (!file->has_its_name()) continue;
    // Another user's would go on to say what it says; where it cannot be removed, it is locked all the same.
    if (!file->is_writable() && file->remove()) continue;
    file->say(own);
    File::hold(file, folder_);
    file_ = file;
    require_alone(path_, option_);
    return;
  }
  throw IoError(fmt::format("{}: {} changes all the time; other jobs are writing there: name another place",
                            option, path_));
}

OutputLock::~OutputLock() = default;

std::shared_ptr<OutputLock::File> OutputLock::open() {
  std::error_code ignored;
  if (!fs::is_directory(directory_of(path_), ignored)) {
    folder_ = std::make_shared<TentativeFolder>(directory_of(path_));
  }
  auto file = std::make_shared<File>(path_);
  if (file->error() == 0) return file;
  struct stat there {};
  if (::lstat(path_.c_str(), &there) == 0) {
    fail_to_open(option_, path_, file->error());
  }
  if (!lets_nobody_write(file->error())) {
    throw SystemRefusal(fmt::format("cannot make the lock file {}: {}; see to that, or name another place",
                                    path_, system_error_text(file->error())),
                        file->error());
  }
  give_up(file->error());
  return nullptr;
}

void OutputLock::require_name() const {
  if (!held() || file_->has_its_name()) return;
  throw IoError(fmt::format(
      "{}: the lock {} is no longer this job's: the folder was moved or removed while the job was "
      "writing there; start it again",
      option_, path_));
}

void OutputLock::require_alone(const std::string& path, const std::string& option) {
  const std::string directory = directory_of(path);
  const std::string name = fs::path(path).filename().string();
  std::vector<std::string> beside;
  if (name == kFolderLock) {
    beside = files_in(directory, [](const fs::path& other) { return is_hdf5_lock(other.string()); });
  } else if (is_hdf5_lock(name)) {
    beside.push_back(folder_lock(directory));
  }
  for (const std::string& other : beside) {
    if (!File::is_locked_elsewhere(other)) continue;
    throw IoError(fmt::format(
        "{}: another job is writing beside it (it has {}); wait for its end or name another place", option,
        other));
  }
}

void OutputLock::look(const std::string& lock_path, const std::string& option) {
  struct stat there {};
  if (::lstat(lock_path.c_str(), &there) == 0) {
    const File file(lock_path, 0);
    if (file.error() != 0) fail_to_open(option, lock_path, file.error());
    const std::string text = file.lock_text(option);
    if (File::is_locked_elsewhere(lock_path)) {
      fail_for_holder(option, keeps_files_of_others(directory_of(lock_path)) ? "" : text);
    }
  }
  std::error_code ignored;
  if (fs::is_directory(directory_of(lock_path), ignored)) require_alone(lock_path, option);
}

void OutputLock::give_up(int error) {
  note_ = fmt::format("{} cannot be locked: {}; see to it that no other job writes there", path_,
                      system_error_text(error));
}

std::string folder_lock(const std::string& directory) {
  return (fs::path(directory) / kFolderLock).string();
}

std::string file_lock(const std::string& path) {
  return (fs::path(path).parent_path() /
          fmt::format(".{}{}", hidden_stem(fs::path(path).filename().string()), kLockEnd))
      .string();
}

}  // namespace weightcast
