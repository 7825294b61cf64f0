// An exporter with a window, and a job step beside it: each in a process of its own, because locks are a
// process's.

#include "live/live_window.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/error.hpp"
#include "live/exporter.hpp"
#include "live/manifest.hpp"
#include "support/child.hpp"
#include "support/files.hpp"
#include "support/temp_dir.hpp"
#include "weightcast/client.h"

namespace weightcast {

namespace {

using namespace std::chrono_literals;
using test_support::Child;

/// Of which the first is in place, the others are in the window, two pages each.
constexpr int kTensors = 4;
const std::int64_t kPage = ::sysconf(_SC_PAGESIZE);
const std::int64_t kBytes = 2 * kPage;

struct Published {
  weightcast_export* handle = nullptr;
  std::uint8_t* window = nullptr;
};

Published publish(const std::string& folder) {
  Published p;
  void* memory = nullptr;
  int segment = 0;
  const auto good = [](int code) { return code == WEIGHTCAST_OK; };
  bool all = good(weightcast_open(folder.c_str(), "engine", 0, 1, "hf", &p.handle)) &&
             good(weightcast_add_segment(p.handle, kBytes, &memory, &segment)) &&
             good(weightcast_add_entry(p.handle, "t0", "U8", 1, &kBytes, nullptr, segment, 0)) &&
             good(weightcast_add_window(p.handle, kTensors * kBytes, kBytes, &memory, &segment));
  for (int i = 1; i < kTensors && all; ++i) {
    const std::string name = fmt::format("t{}", i);
    all = good(weightcast_add_entry(p.handle, name.c_str(), "U8", 1, &kBytes, nullptr, segment, i * kBytes));
  }
  all = all && good(weightcast_serve(p.handle, 1)) && good(weightcast_publish(p.handle));
  p.window = static_cast<std::uint8_t*>(memory);
  return all ? p : Published{};
}

/// An engine that takes tensors as they come, each of which holds its number, and goes on when all have come.
int take_all(const std::string& folder, bool locks_memory = false) {
  const Published p = publish(folder);
  if (locks_memory && ::mlock2(p.window, kTensors * kBytes, MLOCK_ONFAULT) != 0) return 7;
  std::int64_t version = 0;
  if (weightcast_pause(p.handle, 20, &version) != WEIGHTCAST_OK || version != 2) return 1;
  // It is not over yet.
  if (weightcast_resume(p.handle) != WEIGHTCAST_BAD_ARGUMENT) return 2;
  int numbers[2];
  int count = 0;
  int code = WEIGHTCAST_OK;
  int sum = 0;
  while ((code = weightcast_landed(p.handle, numbers, 2, &count)) == WEIGHTCAST_OK && count > 0) {
    for (int i = 0; i < count; ++i) {
      sum += numbers[i];
      for (std::int64_t at = 0; at < kBytes; ++at) {
        if (p.window[numbers[i] * kBytes + at] != numbers[i]) return 3;
      }
    }
  }
  if (code != WEIGHTCAST_OK) return code;
  if (sum != 1 + 2 + 3) return 4;
  // What was taken has been given back.
  for (std::int64_t at = 0; at < kTensors * kBytes; ++at) {
    if (p.window[at] != 0) return 5;
  }
  return weightcast_resume(p.handle) == WEIGHTCAST_OK && weightcast_close(p.handle, 10) == WEIGHTCAST_OK ? 0
                                                                                                         : 6;
}

/// An engine that lets a job step write, gives up where there is a reason, and does nothing more.
int pause_and_sleep(const std::string& folder, const char* reason = nullptr) {
  const Published p = publish(folder);
  std::int64_t version = 0;
  weightcast_pause(p.handle, 20, &version);
  if (reason != nullptr) weightcast_abandon(p.handle, reason);
  ::pause();
  return 0;
}

bool comes(const std::function<bool()>& done) {
  const auto give_up = std::chrono::steady_clock::now() + 20s;
  while (!done() && std::chrono::steady_clock::now() < give_up) std::this_thread::sleep_for(1ms);
  return done();
}

/// A job step's rank, in this process.
class LiveWindowTest : public ::testing::Test {
 protected:
  ~LiveWindowTest() override {
    // What a killed exporter has left goes with the next of its rank.
    window_.reset();
    exporter_.reset();
    weightcast_export* e = nullptr;
    if (weightcast_open(folder_.c_str(), "engine", 0, 1, nullptr, &e) == 0) weightcast_close(e, 0);
  }

  /// Comes as far as the engine's memory may be written.
  void begin(std::chrono::seconds patience = 20s) {
    const std::string path = manifest_path(folder_, Role::kEngine, 0);
    // Not a dead one's, before this.
    ASSERT_TRUE(
        comes([&] { return std::filesystem::exists(path) && read_manifest(path).generation != last_; }));
    exporter_ = std::make_shared<Exporter>(read_manifest(path));
    last_ = exporter_->manifest().generation;
    ASSERT_TRUE(comes([&] { return exporter_->take("rank 0"); }));
    ASSERT_TRUE(exporter_->ask(WEIGHTCAST_SERVING, 3, 2));
    ASSERT_TRUE(comes([&] { return exporter_->state() == WEIGHTCAST_PAUSED; }));
    ASSERT_TRUE(exporter_->change(WEIGHTCAST_PAUSED, WEIGHTCAST_WRITING));
    window_ = std::make_unique<LiveWindow>(exporter_, patience);
    window_->begin();
  }

  std::byte* place(int tensor) const { return exporter_->window()->data() + tensor * kBytes; }

  void bring(int tensor) {
    window_->reserve(place(tensor), kBytes);
    std::memset(place(tensor), tensor, static_cast<std::size_t>(kBytes));
    window_->hand_over(static_cast<std::uint32_t>(tensor));
  }

  /// Bytes that the window takes up.
  std::int64_t in_use() const {
    struct stat status = {};
    const std::string path = "/dev/shm" + exporter_->manifest().segments.at(1).name;
    return ::stat(path.c_str(), &status) == 0 ? status.st_blocks * 512 : -1;
  }

  template <typename Expected>
  void expect_told(const std::string& says) {
    const auto give_up = std::chrono::steady_clock::now() + 20s;
    try {
      while (std::chrono::steady_clock::now() < give_up) window_->taken();
      FAIL() << "it is told nothing";
    } catch (const Expected& error) {
      EXPECT_NE(std::string(error.what()).find(says), std::string::npos) << error.what();
    }
  }

  test_support::TempDir dir_;
  std::string folder_ = dir_ / "weights";
  std::uint64_t last_ = 0;  ///< generation that was opened last
  std::shared_ptr<Exporter> exporter_;
  std::unique_ptr<LiveWindow> window_;
};

/// An engine takes all; whether it keeps its memory from being paged out.
class LiveWindowTaken : public LiveWindowTest, public ::testing::WithParamInterface<bool> {};

TEST_P(LiveWindowTaken, WhatIsHandedOverIsTakenAndItsMemoryGivenBack) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  if (GetParam()) GTEST_SKIP() << "sanitizers let munlock() do nothing";
#endif
  Child engine([&] { return take_all(folder_, GetParam()); });
  ASSERT_NO_FATAL_FAILURE(begin());
  EXPECT_EQ(window_->limit(), kBytes);
  EXPECT_EQ(window_->tensor_at(place(2)), 2);
  EXPECT_EQ(window_->tensor_at(place(2) + kBytes - 1), 2);
  EXPECT_EQ(window_->tensor_at(exporter_->segments()[0]->data()), std::nullopt);
  EXPECT_EQ(in_use(), 0);
  std::size_t handed = 0;
  for (const int tensor : {2, 1, 3}) {
    bring(tensor);
    ++handed;
    // The last one is given back when the engine asks for the next.
    ASSERT_TRUE(comes([&] { return window_->taken() == handed; }));
    EXPECT_EQ(in_use(), 0);
  }
  ASSERT_TRUE(exporter_->change(WEIGHTCAST_WRITING, WEIGHTCAST_WRITTEN));
  ASSERT_TRUE(exporter_->change(WEIGHTCAST_WRITTEN, WEIGHTCAST_COMMITTED));
  ASSERT_TRUE(comes([&] { return exporter_->state() == WEIGHTCAST_SERVING; }));
  window_.reset();
  exporter_.reset();
  EXPECT_EQ(engine.wait(), 0);
}

INSTANTIATE_TEST_SUITE_P(OfAnEngine, LiveWindowTaken, ::testing::Bool(), [](const auto& param) {
  return param.param ? "ThatLocksItsMemory" : "ThatDoesNot";
});

TEST_F(LiveWindowTest, AnEngineThatDiesOrGivesUpOrSleepsIsNamed) {
  {
    Child engine([&] { return take_all(folder_); });
    ASSERT_NO_FATAL_FAILURE(begin());
    engine.kill();
    bring(1);
    expect_told<IoError>("has died; start it again");
    window_.reset();
    exporter_.reset();
  }
  {
    const Child engine([&] { return pause_and_sleep(folder_, "a test wants it so"); });
    ASSERT_NO_FATAL_FAILURE(begin());
    expect_told<IoError>("has given up amid the update: a test wants it so");
    window_.reset();
    exporter_.reset();
  }
  const Child engine([&] { return pause_and_sleep(folder_); });
  ASSERT_NO_FATAL_FAILURE(begin(1s));
  // Where nothing lies there it has all the time.
  std::this_thread::sleep_for(1200ms);
  EXPECT_EQ(window_->taken(), 0);
  bring(1);
  bring(2);
  expect_told<TimeoutError>("has taken none of 2 tensors that lie in its window within 1 s");
}

TEST_F(LiveWindowTest, AJobStepThatDiesLeavesNothingInTheWindow) {
  Child engine([&] { return take_all(folder_); });
  const std::string path = manifest_path(folder_, Role::kEngine, 0);
  ASSERT_TRUE(comes([&] { return std::filesystem::exists(path); }));
  exporter_ = std::make_shared<Exporter>(read_manifest(path));
  Child job([&] {
    exporter_.reset();
    begin();
    bring(1);
    window_->reserve(place(3), kBytes);
    std::memset(place(3), 3, static_cast<std::size_t>(kPage));
    return 0;
  });
  EXPECT_EQ(job.wait(), 0);
  EXPECT_EQ(engine.wait(), WEIGHTCAST_IS_INVALID);
  // Nothing, or no window any more: what the dead have left goes with anybody's next publication.
  EXPECT_LE(in_use(), 0);
}

TEST_F(LiveWindowTest, AnEngineThatStillLoadsWhenTheNextUpdateAsksHasNoVersion) {
  const std::string took = dir_ / "took";
  Child engine([&] {
    const Published p = publish(folder_);
    std::int64_t version = 0;
    int number = 0;
    int count = 0;
    weightcast_pause(p.handle, 20, &version);
    if (weightcast_landed(p.handle, &number, 1, &count) != WEIGHTCAST_OK) return 1;
    std::ofstream(took) << number;
    // Its loader is at work meanwhile.
    if (!comes([&] { return weightcast_wanted(p.handle, &version) == 1; })) return 2;
    return weightcast_landed(p.handle, &number, 1, &count) == WEIGHTCAST_IS_INVALID ? 0 : 3;
  });
  ASSERT_NO_FATAL_FAILURE(begin());
  bring(1);
  ASSERT_TRUE(comes([&] { return std::filesystem::exists(took); }));
  // The update fails, and another one asks at once.
  ASSERT_TRUE(exporter_->change(WEIGHTCAST_WRITING, WEIGHTCAST_INVALID));
  ASSERT_TRUE(exporter_->ask(WEIGHTCAST_INVALID, 4, 3));
  EXPECT_EQ(engine.wait(), 0);
}

TEST_F(LiveWindowTest, ATensorThatTheListNamesTwiceIsTakenOnce) {
  Child engine([&] { return take_all(folder_); });
  ASSERT_NO_FATAL_FAILURE(begin());
  bring(1);
  ASSERT_TRUE(comes([&] { return window_->taken() == 1; }));
  // As if it stood where another one did: what that one had is the loader's nowhere.
  window_->hand_over(1);
  EXPECT_EQ(engine.wait(), WEIGHTCAST_IS_INVALID);
  const BlockState left = exporter_->look();
  EXPECT_EQ(left.state, WEIGHTCAST_INVALID);
  EXPECT_NE(left.cause.find("no tensor of the window, or has come before"), std::string::npos) << left.cause;
}

TEST_F(LiveWindowTest, AListThatSaysWhatCannotBe) {
  const Child engine([&] { return pause_and_sleep(folder_); });
  ASSERT_NO_FATAL_FAILURE(begin());
  const Manifest& manifest = exporter_->manifest();
  const std::string file = "/dev/shm" + manifest.segments.at(1).list;
  const auto put = [&](std::size_t at, std::uint32_t value) {
    std::fstream list(file, std::ios::in | std::ios::out | std::ios::binary);
    list.seekp(static_cast<std::streamoff>(at));
    list.write(reinterpret_cast<const char*>(&value), sizeof value);
  };
  put(offsetof(weightcast_window_list, taken), 7);
  expect_told<InputError>("says that 7 tensors were taken, of 0");
  put(offsetof(weightcast_window_list, magic), 7);
  EXPECT_THROW(LiveWindow(exporter_, 1s), InputError);
  std::filesystem::resize_file(file, 0);
  expect_told<IoError>("has shrunk");
  EXPECT_THROW(LiveWindow(exporter_, 1s), InputError);
}

}  // namespace

}  // namespace weightcast
