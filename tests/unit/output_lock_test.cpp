// Locks on outputs: who has one, what it leaves, and what it says of its holder.

#include "storage/output_lock.hpp"
#include "storage/journal.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdarg>
#include <filesystem>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "sink/output_claim.hpp"
#include "storage/replacement.hpp"
#include "storage/tentative_folder.hpp"
#include "storage/unfinished.hpp"
#include "storage_files.hpp"
#include "support/files.hpp"
#include "support/other_user.hpp"

namespace {

int flock_error = 0;    ///< what the next lock fails with
int open_error = 0;     ///< what the next making of a file fails with
int mkdir_error = 0;    ///< what the next making of a folder fails with
std::string vanishing;  ///< a folder that goes before the next making of a file

}  // namespace

// In place of the C library's.
extern "C" int flock(int fd, int operation) noexcept {
  if (flock_error == 0) return static_cast<int>(::syscall(SYS_flock, fd, operation));
  errno = std::exchange(flock_error, 0);
  return -1;
}

extern "C" int mkdir(const char* path, mode_t mode) noexcept {
  if (mkdir_error == 0) return static_cast<int>(::syscall(SYS_mkdirat, AT_FDCWD, path, mode));
  errno = std::exchange(mkdir_error, 0);
  return -1;
}
extern "C" int open(const char* path, int flags, ...) {
  mode_t mode = 0;
  if ((flags & O_CREAT) != 0) {
    va_list more;
    va_start(more, flags);
    mode = va_arg(more, mode_t);
    va_end(more);
    if (!vanishing.empty()) ::rmdir(std::exchange(vanishing, "").c_str());
    if (open_error != 0) {
      errno = std::exchange(open_error, 0);
      return -1;
    }
  }
  return static_cast<int>(::syscall(SYS_openat, AT_FDCWD, path, flags, mode));
}

namespace weightcast {
namespace {

namespace fs = std::filesystem;
using namespace testing_files;
using test_support::folder_contents;
using test_support::OtherUser;

class OutputLockTest : public ::testing::Test {
 protected:
  /// What is said to a job that wants the lock.
  std::string refusal() const {
    return message_of<IoError>([&] { const OutputLock lock(path_, "--sink hdf5:x", "sync"); });
  }

  TempDir dir_;
  std::string folder_ = dir_ / "model";
  std::string path_ = folder_lock(folder_);
};

TEST_F(OutputLockTest, AFileWithASecondNameOrAFolderStays) {
  fs::create_directory(folder_);
  put_file(dir_ / "precious", "");
  fs::create_hard_link(dir_ / "precious", path_);
  EXPECT_TRUE(has(refusal(), {path_, "no lock file", "remove it or name another place"}));
  EXPECT_TRUE(fs::exists(path_));
  EXPECT_EQ(get_file(dir_ / "precious"), "");
  fs::remove(path_);
  fs::create_directory(path_);
  EXPECT_TRUE(has(refusal(), {path_, "Is a directory"}));
  EXPECT_TRUE(fs::is_directory(path_));
}

/// A process that has the lock until it is told to end, or killed.
class Holder {
 public:
  explicit Holder(const std::string& path) {
    std::array<int, 2> said{};
    std::array<int, 2> told{};
    if (::pipe(said.data()) != 0 || ::pipe(told.data()) != 0) return;
    child_ = ::fork();
    char byte = 0;
    if (child_ == 0) {
      ::close(told[1]);
      {
        const OutputLock lock(path, "--sink", "sync");
        const ssize_t put = ::write(said[1], &byte, 1);
        const ssize_t got = ::read(told[0], &byte, 1);
        if (put < 0 || got < 0) ::_exit(1);
      }
      ::_exit(0);
    }
    ::close(told[0]);
    tell_ = told[1];
    holds_ = ::read(said[0], &byte, 1) == 1;
    ::close(said[0]);
    ::close(said[1]);
  }
  ~Holder() { end(0); }
  Holder(const Holder&) = delete;
  Holder& operator=(const Holder&) = delete;

  bool holds() const { return holds_; }
  pid_t id() const { return child_; }
  void end(int signal) {
    if (child_ <= 0) return;
    if (signal != 0) ::kill(child_, signal);
    ::close(tell_);
    ::waitpid(std::exchange(child_, -1), nullptr, 0);
  }

 private:
  pid_t child_ = -1;
  int tell_ = -1;
  bool holds_ = false;
};

TEST_F(OutputLockTest, ALockNamesItsHolderAndGoesWithIt) {
  const auto take = [&] { const OutputLock lock(path_, "--sink hdf5:x", "sync"); };
  for (const int signal : {0, SIGKILL}) {
    Holder holder(path_);
    ASSERT_TRUE(holder.holds());
    EXPECT_TRUE(has(message_of<IoError>(take), {"--sink hdf5:x", "another job", "sync on host",
                                                "process " + std::to_string(holder.id())}));
    holder.end(signal);
    EXPECT_EQ(fs::exists(path_), signal == SIGKILL);
    take();
    EXPECT_FALSE(fs::exists(path_));
  }
  // Nothing was written: the folder that was made for it goes, too.
  fs::remove(folder_);
  take();
  EXPECT_FALSE(fs::exists(folder_));
}

TEST_F(OutputLockTest, AProcessHasALockAsOftenAsItLikes) {
  std::optional<OutputLock> first(std::in_place, path_, "--sink", "sync");
  {
    const OutputLock second(folder_lock(dir_ / "./model"), "--output", "convert");
    EXPECT_TRUE(second.held());
    EXPECT_EQ(second.note(), "");
    // It goes with the last of them.
    first.reset();
    EXPECT_TRUE(fs::exists(path_));
    const int fd = ::open(path_.c_str(), O_RDWR | O_CLOEXEC);
    EXPECT_EQ(::flock(fd, LOCK_EX | LOCK_NB), -1);
    ::close(fd);
  }
  EXPECT_FALSE(fs::exists(folder_));
}

/// What require_folder() says of a folder; empty where files can be made in it.
std::string wrong_with(const std::string& folder) {
  try {
    require_folder(folder);
    return "";
  } catch (const SystemRefusal& refusal) {
    return refusal.what();
  }
}

TEST_F(OutputLockTest, AFolderIsLookedAtWithoutBeingMade) {
  fs::create_directory(dir_ / "there");
  fs::create_directory(dir_ / "closed");
  ASSERT_EQ(::chmod(dir_.string().c_str(), 0755), 0);
  ASSERT_EQ(::chmod((dir_ / "closed").c_str(), 0555), 0);
  put_file(dir_ / "file", "a file");
  fs::create_symlink("nowhere", dir_ / "link");
  EXPECT_EQ(wrong_with(dir_ / "there"), "");
  EXPECT_EQ(wrong_with(dir_ / "there/"), "");
  EXPECT_EQ(wrong_with(dir_ / "there/a/b"), "");
  EXPECT_FALSE(fs::exists(dir_ / "there/a"));
  for (const char* place : {"file", "file/below", "link", "link/below"}) {
    EXPECT_NE(wrong_with(dir_ / place).find("cannot make the folder " + (dir_ / place)), std::string::npos)
        << place;
  }
  const OtherUser other;
  EXPECT_NE(wrong_with(dir_ / "closed").find("choose a folder that can be written"), std::string::npos);
  EXPECT_NE(wrong_with(dir_ / "closed/a").find("cannot make the folder"), std::string::npos);
}

TEST_F(OutputLockTest, FoldersThatWereMadeGoWithIt) {
  fs::create_directory(dir_ / "there");
  const std::string path = folder_lock(dir_ / "there/a/b/");
  {
    const OutputLock lock(path, "--sink", "sync");
    EXPECT_EQ(lock.made_folders(), 2);
    const TentativeFolder elsewhere(dir_ / "there/a/b", lock.made_folders());
    EXPECT_TRUE(fs::exists(path));
  }
  EXPECT_TRUE(fs::is_empty(dir_ / "there"));
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const OutputLock lock(path, "--sink", "sync");
    undo_unfinished();
    ::_exit(0);
  }
  ::waitpid(child, nullptr, 0);
  EXPECT_TRUE(fs::is_empty(dir_ / "there"));
  {
    const OutputLock lock(path, "--sink", "sync");
    put_file(dir_ / "there/a/file", "a file");
  }
  EXPECT_EQ(folder_contents(dir_.string()).size(), 1U);
}

/// A lock file as another job has it, which says that.
class Locked {
 public:
  Locked(const std::string& path, const std::string& text) {
    fs::create_directories(fs::path(path).parent_path());
    put_file(path, text);
    fd_ = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    EXPECT_EQ(::flock(fd_, LOCK_EX | LOCK_NB), 0);
  }
  ~Locked() { ::close(fd_); }
  Locked(const Locked&) = delete;
  Locked& operator=(const Locked&) = delete;

  void say(const std::string& text) const {
    EXPECT_EQ(::pwrite(fd_, text.data(), text.size(), 0), static_cast<ssize_t>(text.size()));
  }

 private:
  int fd_ = -1;
};

constexpr const char* kDead = "weightcast job: the one before\n";
constexpr const char* kLiving = "weightcast job: the one that is\n";

TEST_F(OutputLockTest, AHolderIsNamedOnlyWhenThatIsCertain) {
  {
    const Locked holder(path_, kLiving);
    EXPECT_TRUE(has(refusal(), {"another job", "(weightcast job: the one that is)"}));
    // Where a file's owner alone may remove it another user may have locked it and cannot say so.
    ASSERT_EQ(::chmod(folder_.c_str(), 01777), 0);
    EXPECT_TRUE(has(refusal(), {"another job", "it cannot say who it is"}));
    ASSERT_EQ(::chmod(folder_.c_str(), 0755), 0);
  }
  {
    const Locked silent(path_, "");
    EXPECT_TRUE(has(refusal(), {"another job", "it cannot say who it is"}));
  }
  for (const char* first : {"", kDead}) {
    const Locked late(path_, first);
    std::thread speaker([&] {
      using namespace std::chrono_literals;
      std::this_thread::sleep_for(50ms);
      late.say(kLiving);
    });
    EXPECT_TRUE(has(refusal(), {"the one that is"}));
    speaker.join();
  }
}

TEST_F(OutputLockTest, WhatADeadHolderSaidGoes) {
  fs::create_directory(folder_);
  put_file(path_, std::string(kDead).append(1000, 'x'));
  const OutputLock lock(path_, "--sink", "sync");
  const std::string text = get_file(path_);
  EXPECT_TRUE(text.starts_with("weightcast job: sync on host"));
  EXPECT_EQ(text.find('\n'), text.size() - 1);
}

TEST_F(OutputLockTest, AnotherUsersFileIsReplaced) {
  fs::create_directory(folder_);
  put_file(path_, kDead);
  for (const std::string& folder : {dir_.string(), folder_}) ASSERT_EQ(::chmod(folder.c_str(), 0777), 0);
  const OtherUser other;
  if (!other.is_another()) GTEST_SKIP() << "only root can be another user";
  const OutputLock lock(path_, "--sink", "sync");
  EXPECT_TRUE(lock.held());
  EXPECT_TRUE(get_file(path_).starts_with("weightcast job: sync on host"));
}

TEST_F(OutputLockTest, AFolderThatCannotBeWrittenIsSaidToBeThat) {
  fs::create_directory(folder_);
  ASSERT_EQ(::chmod(dir_.string().c_str(), 0755), 0);
  ASSERT_EQ(::chmod(folder_.c_str(), 0555), 0);
  const OtherUser other;
  const OutputLock lock(path_, "--sink", "sync");
  EXPECT_FALSE(lock.held());
  EXPECT_TRUE(has(lock.note(), {path_, "cannot be locked", "Permission denied"}));
}

TEST_F(OutputLockTest, ALockTakesNothingOfOthers) {
  const std::string path = file_lock(dir_ / "a.h5");
  EXPECT_EQ(path, dir_ / ".a.h5.lock");
  const auto take = [&] { const OutputLock lock(path, "--output a.h5", "convert"); };
  put_file(path, "precious");
  EXPECT_TRUE(has(message_of<IoError>(take), {"--output a.h5", path, "no lock file", "remove it"}));
  EXPECT_EQ(get_file(path), "precious");
  fs::remove(path);
  put_file(dir_ / "victim", "");
  fs::create_symlink(dir_ / "victim", path);
  EXPECT_TRUE(has(message_of<IoError>(take), {path, "symbolic links"}));
  EXPECT_EQ(get_file(dir_ / "victim"), "");
  fs::remove(path);
  fs::create_directory(path);
  EXPECT_TRUE(has(message_of<IoError>(take), {path}));
  fs::remove(path);
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  EXPECT_TRUE(has(message_of<IoError>(take), {path, "no lock file"}));
}

TEST_F(OutputLockTest, WithoutLocksThereIsANote) {
  for (const int error : {ENOLCK, EOPNOTSUPP, ENOSYS}) {
    flock_error = error;
    const OutputLock lock(folder_lock(dir_.string()), "--sink", "sync");
    EXPECT_FALSE(lock.held());
    EXPECT_TRUE(has(lock.note(), {".weightcast.lock", "cannot be locked", "no other job"}));
    EXPECT_TRUE(folder_contents(dir_.string()).empty());
  }
  flock_error = EINTR;
  const OutputLock lock(folder_lock(dir_.string()), "--sink", "sync");
  EXPECT_EQ(lock.note(), "");
}

TEST_F(OutputLockTest, WhatTheSystemRefusesIsNoMissingLock) {
  for (int* error : {&flock_error, &open_error, &mkdir_error}) {
    for (const int number : {EIO, ENOSPC, EDQUOT, ENOMEM}) {
      *error = number;
      EXPECT_TRUE(has(refusal(), {"--sink hdf5:x", folder_}));
      EXPECT_FALSE(fs::exists(folder_));
    }
  }
}

TEST_F(OutputLockTest, AFolderThatAnotherJobRemovesIsMadeAgain) {
  fs::create_directory(folder_);
  vanishing = folder_;
  {
    const OutputLock lock(path_, "--sink", "sync");
    EXPECT_TRUE(lock.held());
  }
  fs::remove(folder_);
  // The one above it goes while this one is being made.
  mkdir_error = ENOENT;
  const OutputLock lock(path_, "--sink", "sync");
  EXPECT_TRUE(lock.held());
}

TEST_F(OutputLockTest, AFolderThatWasMovedIsNoticedAndTheLockOfAnotherJobStays) {
  OutputLock lock(path_, "--sink hdf5:x", "sync");
  EXPECT_NO_THROW(lock.require_name());
  fs::rename(folder_, dir_ / "moved");
  const auto message = [&] { return message_of<IoError>([&] { lock.require_name(); }); };
  EXPECT_TRUE(has(message(), {"--sink hdf5:x", path_, "moved or removed", "start it again"}));
  fs::create_directory(folder_);
  put_file(path_, kLiving);
  EXPECT_TRUE(has(message(), {path_, "moved or removed"}));
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    undo_unfinished();
    ::_exit(0);
  }
  ::waitpid(child, nullptr, 0);
  EXPECT_EQ(get_file(path_), kLiving);
}

TEST_F(OutputLockTest, OnlyWhatIsLockedIsCleared) {
  fs::create_directory(folder_);
  const auto names = [&] { return names_in(folder_).size(); };
  const auto begin = [&] {
    for (const char* name : {"/.a.1123456789abcdef.partial", "/.a.0123456789abcdef.old", "/a"}) {
      put_file(folder_ + name, "left over");
    }
    struct stat partial {};
    EXPECT_EQ(::lstat((folder_ + "/.a.1123456789abcdef.partial").c_str(), &partial), 0);
    fs::remove(folder_ + "/.a.1123456789abcdef.journal");
    begin_journal(folder_ + "/.a.1123456789abcdef.journal", partial.st_ino);
    return OutputClaim(path_, "--sink", "sync",
                       LeftOvers(folder_ + "/a", [](const fs::path&) { return true; }));
  };
  flock_error = ENOLCK;
  {
    ::testing::internal::CaptureStderr();
    const OutputClaim claim = begin();
    EXPECT_TRUE(has(::testing::internal::GetCapturedStderr().substr(0, 30), {"weightcast: "}));
    EXPECT_FALSE(claim.held());
    claim.clear();
    claim.replaced();
    EXPECT_EQ(names(), 4U);
  }
  const OutputClaim claim = begin();
  EXPECT_TRUE(claim.held());
  claim.clear();
  EXPECT_EQ(names(), 3U);  // with the lock
  claim.replaced();
  EXPECT_EQ(names(), 2U);
}

}  // namespace
}  // namespace weightcast
