#include "storage/file_replacement.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <string_view>
#include <utility>

#include "storage/hidden_names.hpp"
#include "storage/input_file.hpp"
#include "storage/rename.hpp"

namespace weightcast {

namespace {

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
    case EISDIR:
      return "remove that folder, or name another place";
    case ENAMETOOLONG:
      return "choose a shorter name";
    default:
      return "check its folder and its disk";
  }
}

[[noreturn]] void fail_to_create(const std::string& path, int error) {
  throw SystemRefusal(
      fmt::format("cannot create a file beside {}: {}; {}", path, system_error_text(error), remedy(error)),
      error);
}

}  // namespace

void fail_at(std::string_view what, const std::string& path, int error) {
  throw SystemRefusal(
      fmt::format("cannot {} {}: {}; {}", what, path, system_error_text(error), remedy(error)), error);
}

FileReplacement::FileReplacement(const std::string& final_path, const std::string& id)
    : state_{final_path,
             hidden_path(final_path, id, kPartial),
             hidden_path(final_path, id, kOld),
             hidden_path(final_path, id, kJournal),
             {},
             false,
             -1} {}

FileReplacement::~FileReplacement() {
  abandon();
}

void FileReplacement::keep_in_sight(int descriptor) {
  state_.descriptor = descriptor;
  note_unfinished(this, state_);
}

void FileReplacement::abandon() noexcept {
  if (stage_ == Stage::kOpen) undo(state_);
  end(Stage::kEnded);
}

int FileReplacement::create_partial() {
  struct stat there {};
  if (::lstat(final_path().c_str(), &there) == 0) {
    seen_ = there;
  } else if (errno == ENAMETOOLONG) {
    // A hidden name is never too long.
    fail_to_create(final_path(), ENAMETOOLONG);
  }
  const mode_t mode = seen_ && S_ISREG(seen_->st_mode) ? S_IRUSR | S_IWUSR : 0666;
  int fd = -1;
  do {
    fd = ::open(partial_path().c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) {
    const int error = errno;
    stage_ = Stage::kEnded;  // what lies there is not this one's
    fail_to_create(final_path(), error);
  }
  note_unfinished(this, state_);
  try {
    begin_journal(state_.journal_path, identity_of(fd, partial_path()).inode);
  } catch (const SystemRefusal& refusal) {
    ::close(fd);
    abandon();
    // Of the file, not of what is written beside it.
    fail_to_create(final_path(), refusal.number());
  } catch (const IoError&) {
    ::close(fd);
    abandon();
    throw;
  }
  return fd;
}

std::optional<struct stat> FileReplacement::require_as_seen() const {
  struct stat there {};
  if (::lstat(final_path().c_str(), &there) != 0) {
    if (errno == ENOENT) return std::nullopt;
    fail_at("look at", final_path(), errno);
  }
  if (identity_of(there) != seen()) fail_for_other();
  return there;
}

void FileReplacement::fail_for_other() const {
  throw IoError(fmt::format(
      "cannot replace {}: somebody has put another file there, or written into it, since this job looked; it "
      "stays: move it away, or name another place",
      final_path()));
}

void FileReplacement::move_away() {
  if (::rename(final_path().c_str(), old_path().c_str()) != 0) {
    if (errno == ENOENT) return;
    fail_at("move away the old", final_path(), errno);
  }
  struct stat old {};
  if (::lstat(old_path().c_str(), &old) == 0 && identity_of(old) == seen()) return;
  take_free_name(old_path(), final_path());
  fail_for_other();
}

void FileReplacement::promise(const std::optional<FileIdentity>& fresh) {
  JournalEntry entry{fresh, std::nullopt};
  if (const auto old = require_as_seen()) entry.old = identity_of(*old);
  promise_in_journal(state_.journal_path, entry);
  sync_directory(directory_of(final_path()));
  state_.entry = entry;
  state_.promised = true;
  note_unfinished(this, state_);
}

void FileReplacement::end(Stage stage) noexcept {
  stage_ = stage;
  forget_unfinished(this);
}

void FileReplacement::take_back() {
  if (!state_.promised || stage_ != Stage::kOpen) return;
  const bool open = mark_broken_off(state_);
  const PutBack result = open ? put_back(state_) : PutBack::kStranger;
  const int error = errno;
  end(Stage::kTakenBack);
  if (result == PutBack::kDone) return;
  struct stat old {};
  const bool has_old = ::lstat(old_path().c_str(), &old) == 0;
  if (result == PutBack::kStranger) {
    throw NotPutBack(
        fmt::format("cannot put {} back: another file has been put there since, which stays{}; look for who "
                    "else writes there",
                    final_path(), has_old ? fmt::format(", and what was there is {}", old_path()) : ""));
  }
  throw NotPutBack(fmt::format("cannot put {} back: {}; {}", final_path(), system_error_text(error),
                               has_old ? fmt::format("what was there is {}", old_path()) : "remove it"));
}

void FileReplacement::give_up() noexcept {
  // The old file has both names.
  remove_hidden(state_);
  end(Stage::kEnded);
}

void FileReplacement::settle() noexcept {
  end(Stage::kSettled);
}

void FileReplacement::keep() noexcept {
  ::unlink(old_path().c_str());
  ::unlink(state_.journal_path.c_str());
  end(Stage::kEnded);
}

void sync_directory(const std::string& directory) {
  const int fd = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) fail_at("open the folder", directory, errno);
  const int error = ::fsync(fd) != 0 ? errno : 0;
  ::close(fd);
  // EINVAL: a file system that keeps its names without being asked.
  if (error != 0 && error != EINVAL) fail_at("flush the folder", directory, error);
}

}  // namespace weightcast
