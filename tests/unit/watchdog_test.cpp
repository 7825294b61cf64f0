// The last resort of a process, on a file system that hangs.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>

#include "control/farewell.hpp"
#include "control/watchdog.hpp"
#include "core/error.hpp"
#include "storage/partial_file.hpp"
#include "support/temp_dir.hpp"

namespace {

std::atomic<bool> file_system_hangs = false;

void hang() {
  using namespace std::chrono_literals;
  while (file_system_hangs) std::this_thread::sleep_for(1h);
}

}  // namespace

// In place of the C library's.
extern "C" int unlink(const char* path) noexcept {
  hang();
  return static_cast<int>(::syscall(SYS_unlink, path));
}
extern "C" int unlinkat(int folder, const char* path, int flags) noexcept {
  hang();
  return static_cast<int>(::syscall(SYS_unlinkat, folder, path, flags));
}
extern "C" int fsync(int fd) {
  hang();
  return static_cast<int>(::syscall(SYS_fsync, fd));
}

namespace weightcast {

namespace {

using namespace std::chrono_literals;

class LastResort : public ::testing::Test {
 protected:
  test_support::TempDir dir_;
  PartialFile file_{dir_ / "shard.h5"};
};

TEST_F(LastResort, AHangingFileSystemCannotKeepTheProcess) {
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EXIT(
      {
        file_system_hangs = true;
        const Watchdog watchdog("writing", 1s, 0);
        file_.flush();
      },
      ::testing::ExitedWithCode(76), "weightcast: error: rank 0: writing: has hung for 1 s");
  EXPECT_LT(std::chrono::steady_clock::now() - start, 30s);
}

TEST_F(LastResort, APipeThatNobodyEmptiesCannotKeepTheProcess) {
  std::array<int, 2> pipe{};
  ASSERT_EQ(::pipe2(pipe.data(), O_NONBLOCK), 0);
  const std::string text(4096, 'x');
  while (::write(pipe[1], text.data(), text.size()) > 0) {
  }
  EXPECT_EXIT(
      {
        // Whoever writes waits from now on.
        if (::fcntl(pipe[1], F_SETFL, 0) != 0 || ::dup2(pipe[1], STDERR_FILENO) < 0) ::_exit(1);
        const Watchdog watchdog("writing", 1s, 0);
        std::this_thread::sleep_for(60s);
      },
      ::testing::ExitedWithCode(76), "");
  ::close(pipe[0]);
  ::close(pipe[1]);
}

TEST_F(LastResort, OneThatNeedNotSpeakEndsWithoutALine) {
  EXPECT_EXIT(
      {
        Watchdog watchdog("starting", 60s, 0);
        // Ranks behind the first few wait for those.
        watchdog.watch_rank(6, "writing", 1s - 6 * 5s);
        std::this_thread::sleep_for(60s);
      },
      ::testing::ExitedWithCode(76), "^$");
}

TEST_F(LastResort, PartialFilesGo) {
  EXPECT_EXIT(leave(ExitCode::kInputOutput), ::testing::ExitedWithCode(74), "");
  EXPECT_FALSE(std::filesystem::exists(file_.partial_path()));
}

TEST(Within, WaitsForWhatEndsAndNotForWhatDoesNot) {
  const auto done = std::make_shared<std::atomic<bool>>(false);
  within(60s, [done] { *done = true; });
  EXPECT_TRUE(*done);
  const auto go_on = std::make_shared<std::atomic<bool>>(false);
  within(10ms, [go_on] { go_on->wait(false); });
  *go_on = true;
  go_on->notify_all();
}

}  // namespace

}  // namespace weightcast
