// The record of a commit in a folder that shows names late, as those of the network do.

#include <errno.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <cstdarg>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <thread>

#include "core/error.hpp"
#include "live/exporter.hpp"
#include "live/manifest.hpp"
#include "support/child.hpp"
#include "support/files.hpp"
#include "support/temp_dir.hpp"
#include "weightcast/client.h"

namespace {

/// Of a process that does not see records yet: the file that ends that; empty otherwise.
std::string seen_with;  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)

}  // namespace

// In place of the C library's. The server knows the name, and this host does not show it.
extern "C" int open(const char* path, int flags, ...) {
  std::va_list list;
  va_start(list, flags);
  const int mode = (flags & O_CREAT) != 0 ? va_arg(list, int) : 0;
  va_end(list);
  if (!seen_with.empty() && std::string_view(path).find("/commit-") != std::string_view::npos &&
      ::access(seen_with.c_str(), F_OK) != 0) {
    errno = (flags & O_CREAT) != 0 ? EEXIST : ENOENT;
    return -1;
  }
  return static_cast<int>(::syscall(SYS_openat, AT_FDCWD, path, flags, mode));
}

namespace weightcast {

namespace {

using namespace std::chrono_literals;
using test_support::Child;

class LateRecord : public ::testing::Test {
 protected:
  /// What killed exporters have left goes with the next of their rank.
  ~LateRecord() override {
    weightcast_export* e = nullptr;
    if (weightcast_open(folder_.c_str(), "engine", 0, 1, nullptr, &e) == 0) weightcast_close(e, 0);
  }

  /// An engine that serves version 1, and its pause.
  int pause(double seconds) const {
    weightcast_export* e = nullptr;
    void* memory = nullptr;
    int segment = 0;
    std::int64_t version = 0;
    const bool published = weightcast_open(folder_.c_str(), "engine", 0, 1, nullptr, &e) == 0 &&
                           weightcast_add_segment(e, 64, &memory, &segment) == 0 &&
                           weightcast_serve(e, 1) == 0 && weightcast_publish(e) == 0;
    return published ? weightcast_pause(e, seconds, &version) : -1;
  }

  Manifest manifest() const {
    const std::string path = manifest_path(folder_, Role::kEngine, 0);
    const auto give_up = std::chrono::steady_clock::now() + 10s;
    while (!std::filesystem::exists(path)) {
      if (std::chrono::steady_clock::now() > give_up) throw IoError("no manifest");
      std::this_thread::sleep_for(1ms);
    }
    return read_manifest(path);
  }

  /// Update 3 to version 2, as far as the engine's memory is written.
  static void write(Exporter& exporter) {
    while (!exporter.take("rank 0")) exporter.await_change();
    exporter.ask(WEIGHTCAST_SERVING, 3, 2);
    while (exporter.state() == WEIGHTCAST_ASKED) exporter.await_change();
    exporter.change(WEIGHTCAST_PAUSED, WEIGHTCAST_WRITING);
    exporter.change(WEIGHTCAST_WRITING, WEIGHTCAST_WRITTEN);
  }

  /// A job step that dies when the record has its name.
  static int commit_and_die(const Manifest& found, const std::string& record) {
    Exporter exporter(found);
    write(exporter);
    test_support::put_file(record, "{}");
    return 0;
  }

  test_support::TempDir dir_;
  std::string folder_ = dir_ / "weights";
  std::string record_ = folder_ + "/commit-3.json";
  std::string visible_ = dir_ / "visible";
};

TEST_F(LateRecord, IsLookedForUntilItIsSeen) {
  Child engine([&] {
    seen_with = visible_;
    return pause(30);
  });
  const Manifest found = manifest();
  const Exporter seen(found);
  Child job([&] { return commit_and_die(found, record_); });
  ASSERT_EQ(job.wait(), 0);
  std::this_thread::sleep_for(500ms);
  // Nobody has decided anything.
  EXPECT_EQ(seen.state(), WEIGHTCAST_WRITTEN);
  test_support::put_file(visible_, "");
  EXPECT_EQ(engine.wait(), WEIGHTCAST_OK);
  EXPECT_EQ(seen.state(), WEIGHTCAST_COMMITTED);
  EXPECT_EQ(test_support::get_file(record_), "{}");
}

TEST_F(LateRecord, ThatIsNotSeenInTimeLeavesNoVersion) {
  Child engine([&] {
    seen_with = visible_;
    return pause(0.5);
  });
  const Manifest found = manifest();
  const Exporter seen(found);
  Child job([&] { return commit_and_die(found, record_); });
  ASSERT_EQ(job.wait(), 0);
  EXPECT_EQ(engine.wait(), WEIGHTCAST_IS_INVALID);
  EXPECT_NE(in_words(seen.look()).find("all of version 2 is written"), std::string::npos);
  EXPECT_NE(in_words(seen.look()).find("does not say whether"), std::string::npos);
  EXPECT_EQ(test_support::get_file(record_), "{}");
}

TEST_F(LateRecord, IsWaitedForWhileTheJobStepLives) {
  // Not by the clock: whatever the engine has written is the job step's to decide on.
  Child engine([&] { return pause(0.5); });
  Exporter exporter(manifest());
  write(exporter);
  std::this_thread::sleep_for(1s);
  EXPECT_EQ(exporter.state(), WEIGHTCAST_WRITTEN);
  EXPECT_FALSE(std::filesystem::exists(record_));
  test_support::put_file(record_, "{}");
  ASSERT_TRUE(exporter.change(WEIGHTCAST_WRITTEN, WEIGHTCAST_COMMITTED));
  EXPECT_EQ(engine.wait(), WEIGHTCAST_OK);
}

}  // namespace

}  // namespace weightcast
