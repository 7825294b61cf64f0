// An exporter that uses the client library, and a job step beside it: each in a process of its own, because
// locks are a process's.

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "client/clearing.hpp"
#include "client/export.hpp"
#include "core/error.hpp"
#include "live/exporter.hpp"
#include "live/folder.hpp"
#include "live/manifest.hpp"
#include "support/child.hpp"
#include "support/files.hpp"
#include "support/temp_dir.hpp"
#include "weightcast/client.h"

namespace weightcast {

namespace {

using namespace std::chrono_literals;
using test_support::Child;
using test_support::get_file;
using test_support::put_file;
using test_support::TempDir;

constexpr std::int64_t kElements = 1000;

/// Publishes two tensors of one segment, one of which has a second name. Null on failure.
weightcast_export* publish(const std::string& folder, const char* role, std::uint16_t value = 0) {
  weightcast_export* e = nullptr;
  void* memory = nullptr;
  int segment = 0;
  const std::int64_t matrix[] = {10, kElements / 10};
  const std::int64_t vector[] = {kElements};
  if (weightcast_open(folder.c_str(), role, 0, 1, "hf", &e) != 0) return nullptr;
  if (weightcast_add_segment(e, 4 * kElements, &memory, &segment) != 0) return nullptr;
  if (weightcast_add_entry(e, "matrix \"a\"", "BF16", 2, matrix, nullptr, segment, 0) != 0) return nullptr;
  if (weightcast_add_entry(e, "vector", "BF16", 1, vector, nullptr, segment, 2 * kElements) != 0)
    return nullptr;
  if (weightcast_add_alias(e, "vector", "tied") != 0) return nullptr;
  std::fill_n(static_cast<std::uint16_t*>(memory), 2 * kElements, value);
  if (std::string(role) == "engine" && weightcast_serve(e, 1) != 0) return nullptr;
  return weightcast_publish(e) == 0 ? e : nullptr;
}

/// An engine that looks at nothing any more.
int serve_for_ever(const std::string& folder) {
  publish(folder, "engine");
  ::pause();
  return 0;
}

/// Waits for a state that another process brings about; false when it does not come.
bool comes(const std::function<bool()>& done) {
  const auto give_up = std::chrono::steady_clock::now() + 10s;
  while (!done() && std::chrono::steady_clock::now() < give_up) std::this_thread::sleep_for(1ms);
  return done();
}

class Live : public ::testing::Test {
 protected:
  /// What killed exporters have left goes with the next of their rank.
  ~Live() override {
    for (const char* role : {"engine", "trainer"}) {
      weightcast_export* e = nullptr;
      if (weightcast_open(folder_.c_str(), role, 0, 1, nullptr, &e) == 0) weightcast_close(e, 0);
    }
  }

  /// The manifest of the only exporter, once it is there.
  Manifest manifest(Role role) const {
    const auto give_up = std::chrono::steady_clock::now() + 10s;
    while (!std::filesystem::exists(manifest_path(folder_, role, 0))) {
      if (std::chrono::steady_clock::now() > give_up) throw IoError("no manifest");
      std::this_thread::sleep_for(1ms);
    }
    return read_manifest(manifest_path(folder_, role, 0));
  }

  /// Waits until the exporter's state is another than `state`.
  static weightcast_state after(const Exporter& exporter, weightcast_state state) {
    const auto give_up = std::chrono::steady_clock::now() + 10s;
    while (exporter.state() == state && std::chrono::steady_clock::now() < give_up) exporter.await_change();
    return exporter.state();
  }

  TempDir dir_;
  std::string folder_ = dir_ / "weights";
};

TEST_F(Live, ManifestsSayWhatWasPublished) {
  const Child engine([&] { return serve_for_ever(folder_); });
  const Manifest found = manifest(Role::kEngine);
  EXPECT_EQ(found.ranks, 1);
  EXPECT_EQ(found.layout, "hf");
  ASSERT_EQ(found.entries.size(), 2);
  EXPECT_EQ(found.entries[0].name, "matrix \"a\"");
  EXPECT_EQ(found.entries[0].shape, Shape({10, kElements / 10}));
  EXPECT_TRUE(found.entries[0].contiguous());
  EXPECT_EQ(found.entries[1].offset, 2 * kElements);
  EXPECT_EQ(found.entries[1].aliases, std::vector<std::string>{"tied"});
  EXPECT_EQ(std::filesystem::status(found.path).permissions(),
            std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  EXPECT_EQ(read_manifests(folder_, Role::kEngine).size(), 1);
  EXPECT_TRUE(read_manifests(folder_, Role::kTrainer).empty());
}

TEST_F(Live, AControlBlockOfAnotherFormIsRefusedWithBothVersions) {
  const Child engine([&] { return serve_for_ever(folder_); });
  const Manifest found = manifest(Role::kEngine);
  EXPECT_EQ(found.client, weightcast_version());
  const std::string block = "/dev/shm" + found.control;
  const std::string before = get_file(block);
  std::fstream(block, std::ios::in | std::ios::out) << "WCLIVE9";
  try {
    const Exporter exporter(found);
    FAIL() << "accepted";
  } catch (const IoError& error) {
    const std::string said = "it was published by client " + found.client + ", and this is weightcast ";
    EXPECT_NE(std::string(error.what()).find(said), std::string::npos) << error.what();
  }
  // For whoever clears what is left.
  std::fstream(block, std::ios::in | std::ios::out) << before;
}

TEST_F(Live, AnEngineIsWrittenBetweenPauseAndResume) {
  const Child engine([&] {
    weightcast_export* e = publish(folder_, "engine", 7);
    std::int64_t version = 0;
    while (weightcast_wanted(e, &version) != 1) std::this_thread::sleep_for(1ms);
    if (version != 5 || weightcast_pause(e, 10, &version) != 0 || version != 5) return 1;
    return weightcast_resume(e) == 0 && weightcast_close(e, 10) == 0 ? 0 : 2;
  });
  auto exporter = std::make_unique<Exporter>(manifest(Role::kEngine));
  ASSERT_EQ(exporter->state(), WEIGHTCAST_SERVING);
  EXPECT_EQ(exporter->version(), 1);
  std::uint16_t held = 0;
  exporter->segments().front()->read(4 * kElements - 2, std::as_writable_bytes(std::span(&held, 1)));
  EXPECT_EQ(held, 7);
  ASSERT_TRUE(exporter->take("rank 0"));
  ASSERT_TRUE(exporter->ask(WEIGHTCAST_SERVING, 12, 5));
  ASSERT_EQ(after(*exporter, WEIGHTCAST_ASKED), WEIGHTCAST_PAUSED);
  ASSERT_TRUE(exporter->change(WEIGHTCAST_PAUSED, WEIGHTCAST_WRITING));
  exporter->segments().front()->fill(0, 4 * kElements, std::byte{9});
  ASSERT_TRUE(exporter->change(WEIGHTCAST_WRITING, WEIGHTCAST_WRITTEN));
  ASSERT_TRUE(exporter->change(WEIGHTCAST_WRITTEN, WEIGHTCAST_COMMITTED));
  EXPECT_EQ(after(*exporter, WEIGHTCAST_COMMITTED), WEIGHTCAST_SERVING);
  EXPECT_EQ(exporter->version(), 5);
  EXPECT_EQ(exporter->update(), 12);
  // It closes when nobody has its memory mapped any more.
  exporter.reset();
  EXPECT_EQ(const_cast<Child&>(engine).wait(), 0);
  EXPECT_FALSE(std::filesystem::exists(manifest_path(folder_, Role::kEngine, 0)));
}

/// A job step that dies in `state`, and what an engine that waits makes of it.
struct Death {
  weightcast_state state;
  bool recorded;          ///< the commit is
  weightcast_state left;  ///< the engine's state afterwards
  int code;               ///< of its pause
};

class DeathOfTheJobStep : public Live, public ::testing::WithParamInterface<Death> {};

TEST_P(DeathOfTheJobStep, LeavesStatesThatAreTrue) {
  const Death& death = GetParam();
  Child engine([&] {
    weightcast_export* e = publish(folder_, "engine");
    std::int64_t version = 0;
    return weightcast_pause(e, 20, &version);
  });
  const Manifest found = manifest(Role::kEngine);
  const Exporter seen(found);
  Child job([&] {
    Exporter exporter(found);
    while (!exporter.take("rank 0")) exporter.await_change();
    exporter.ask(WEIGHTCAST_SERVING, 3, 2);
    if (death.state == WEIGHTCAST_ASKED) return 0;
    after(exporter, WEIGHTCAST_ASKED);
    if (death.state == WEIGHTCAST_PAUSED) return 0;
    exporter.change(WEIGHTCAST_PAUSED, WEIGHTCAST_WRITING);
    if (death.state == WEIGHTCAST_WRITING) return 0;
    exporter.change(WEIGHTCAST_WRITING, WEIGHTCAST_WRITTEN);
    if (death.recorded) put_file(folder_ + "/commit-3.json", "{}");
    return 0;
  });
  ASSERT_EQ(job.wait(), 0);
  // What the engine is told is what the block says.
  EXPECT_EQ(engine.wait(), death.code);
  EXPECT_EQ(seen.state(), death.left) << seen.reason();
  if (death.state != WEIGHTCAST_WRITTEN) return;
  // Whoever comes later finds the decision.
  EXPECT_EQ(get_file(folder_ + "/commit-3.json"), death.recorded ? "{}" : "void\n");
}

TEST_F(Live, AnEngineIsToldThatTheJobStepHasInvalidatedIt) {
  Child engine([&] {
    weightcast_export* e = publish(folder_, "engine");
    std::int64_t version = 0;
    if (weightcast_pause(e, 20, &version) != WEIGHTCAST_IS_INVALID) return 1;
    // No answer to another question brings the old version back.
    while (weightcast_wanted(e, &version) != 1) std::this_thread::sleep_for(1ms);
    if (weightcast_decline(e, "not now") != 0) return 2;
    if (weightcast_pause(e, 0.05, &version) != WEIGHTCAST_IS_INVALID) return 3;
    return std::strstr(weightcast_last_error(), ": a test") == nullptr ? 4 : 0;
  });
  Exporter exporter(manifest(Role::kEngine));
  while (!exporter.take("rank 0")) exporter.await_change();
  ASSERT_TRUE(exporter.ask(WEIGHTCAST_SERVING, 3, 2));
  ASSERT_EQ(after(exporter, WEIGHTCAST_ASKED), WEIGHTCAST_PAUSED);
  ASSERT_TRUE(exporter.change(WEIGHTCAST_PAUSED, WEIGHTCAST_WRITING));
  ASSERT_TRUE(exporter.invalidate(WEIGHTCAST_WRITING, WEIGHTCAST_WRITTEN_SOME, "a test"));
  // One that still waits when it is asked again goes on waiting.
  std::this_thread::sleep_for(300ms);
  ASSERT_TRUE(exporter.ask(WEIGHTCAST_INVALID, 4, 6));
  EXPECT_EQ(after(exporter, WEIGHTCAST_ASKED), WEIGHTCAST_INVALID);
  EXPECT_EQ(exporter.reason(), "not now");
  EXPECT_EQ(engine.wait(), 0);
  // Whatever it was asked since: what was lost is the earlier version.
  EXPECT_EQ(in_words(exporter.look()),
            "invalid: some of version 2 is written: a test (the last update did not take place: not now)");
}

INSTANTIATE_TEST_SUITE_P(In, DeathOfTheJobStep,
                         ::testing::Values(Death{WEIGHTCAST_ASKED, false, WEIGHTCAST_SERVING, 74},
                                           Death{WEIGHTCAST_PAUSED, false, WEIGHTCAST_SERVING, 74},
                                           Death{WEIGHTCAST_WRITING, false, WEIGHTCAST_INVALID, 65},
                                           Death{WEIGHTCAST_WRITTEN, false, WEIGHTCAST_INVALID, 65},
                                           Death{WEIGHTCAST_WRITTEN, true, WEIGHTCAST_COMMITTED, 0}));

TEST_F(Live, OneJobStepAtATime) {
  const Child engine([&] { return serve_for_ever(folder_); });
  const Manifest found = manifest(Role::kEngine);
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const Child first([&] {
    Exporter exporter(found);
    exporter.take("rank 0 of job 17");
    static_cast<void>(!::write(ready[1], "x", 1));
    ::pause();
    return 0;
  });
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  Exporter exporter(found);
  try {
    exporter.take("rank 0");
    FAIL() << "two have it";
  } catch (const IoError& error) {
    EXPECT_NE(std::string(error.what()).find("rank 0 of job 17"), std::string::npos) << error.what();
  }
  const_cast<Child&>(first).kill();
  EXPECT_TRUE(exporter.take("rank 0"));
}

TEST_F(Live, ExportersThatAreGoneAreRefusedAndTheirPlaceIsTaken) {
  Child engine([&] { return serve_for_ever(folder_); });
  const Manifest found = manifest(Role::kEngine);
  // While it lives nobody else has its place.
  Child second([&] { return publish(folder_, "engine") == nullptr ? 0 : 1; });
  EXPECT_EQ(second.wait(), 0);
  engine.kill();
  EXPECT_THROW(Exporter{found}, IoError);
  Child third([&] { return publish(folder_, "engine") == nullptr ? 1 : 0; });
  EXPECT_EQ(third.wait(), 0);
  EXPECT_NE(read_manifest(found.path).generation, found.generation);
  EXPECT_FALSE(std::filesystem::exists("/dev/shm" + found.control));
  EXPECT_FALSE(std::filesystem::exists("/dev/shm" + found.segments.front().name));
}

/// Whether an exporter of that generation has any shared memory. Others come and go meanwhile.
bool has_memory(std::uint64_t generation) {
  const std::string prefix = fmt::format("weightcast-{}-{:016x}-", ::getuid(), generation);
  const std::filesystem::directory_iterator all("/dev/shm");
  return std::any_of(begin(all), end(all),
                     [&](const auto& entry) { return entry.path().filename().string().starts_with(prefix); });
}

/// An exporter that has memory, but does not come to publish it; its generation is written to `ready` when it
/// has.
int open_alone(const std::string& folder, int ready) {
  constexpr std::int64_t kBytes = 1 << 20;
  weightcast_export* e = nullptr;
  void* memory = nullptr;
  int segment = 0;
  if (weightcast_open(folder.c_str(), "engine", 0, 1, nullptr, &e) != 0) return 1;
  if (weightcast_add_segment(e, kBytes, &memory, &segment) != 0) return 1;
  if (::write(ready, &e->generation, sizeof e->generation) != sizeof e->generation) return 1;
  ::pause();
  return 0;
}

TEST_F(Live, WhoDiesBeforeItHasPublishedLeavesNothingForLong) {
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  std::uint64_t living = 0;
  std::uint64_t dead = 0;
  const Child lives([&] { return open_alone(folder_, ready[1]); });
  ASSERT_EQ(::read(ready[0], &living, sizeof living), static_cast<ssize_t>(sizeof living));
  Child dies([&] { return open_alone(folder_, ready[1]); });
  ASSERT_EQ(::read(ready[0], &dead, sizeof dead), static_cast<ssize_t>(sizeof dead));
  EXPECT_TRUE(has_memory(living) && has_memory(dead));
  dies.kill();
  // Of whatever rank and folder the next one is.
  Child next([&] { return publish(dir_ / "elsewhere", "trainer") == nullptr ? 1 : 0; });
  EXPECT_EQ(next.wait(), 0);
  EXPECT_FALSE(has_memory(dead));
  EXPECT_TRUE(has_memory(living));
}

TEST_F(Live, WhatCannotBeOpenedIsNotTakenForDead) {
  const Child engine([&] { return serve_for_ever(folder_); });
  const Manifest found = manifest(Role::kEngine);
  // One descriptor is left: for the list of all memory, and for none that is on it.
  Child other([&] {
    const int next = ::open("/dev/null", O_RDONLY);
    ::close(next);
    const rlimit one{static_cast<rlim_t>(next) + 1, static_cast<rlim_t>(next) + 1};
    if (::setrlimit(RLIMIT_NOFILE, &one) != 0) return -1;
    weightcast_export* e = nullptr;
    return weightcast_open((dir_ / "elsewhere").c_str(), "trainer", 0, 1, nullptr, &e);
  });
  EXPECT_EQ(other.wait(), 0);
  EXPECT_TRUE(std::filesystem::exists("/dev/shm" + found.control));
  EXPECT_TRUE(std::filesystem::exists("/dev/shm" + found.segments.front().name));
}

TEST_F(Live, MemoryThatCannotBeRemovedIsFoundAgain) {
  Child engine([&] { return serve_for_ever(folder_); });
  const Manifest found = manifest(Role::kEngine);
  const std::string segment = "/dev/shm" + found.segments.front().name;
  const auto publish_again = [&] {
    Child next([&] { return publish(folder_, "engine") == nullptr ? 1 : 0; });
    return next.wait();
  };
  // A folder cannot be unlinked.
  ASSERT_TRUE(std::filesystem::remove(segment) && std::filesystem::create_directory(segment));
  engine.kill();
  EXPECT_EQ(publish_again(), 0);
  EXPECT_TRUE(std::filesystem::exists("/dev/shm" + found.control));
  std::filesystem::remove(segment);
  EXPECT_EQ(publish_again(), 0);
  EXPECT_FALSE(std::filesystem::exists("/dev/shm" + found.control));
}

TEST_F(Live, AnExporterOfAnotherContainerIsNotTakenForDead) {
  Child engine([&] { return publish(folder_, "engine") == nullptr ? 1 : 0; });
  ASSERT_EQ(engine.wait(), 0);
  const std::string path = manifest_path(folder_, Role::kEngine, 0);
  const std::string published = get_file(path);
  const auto open_after = [&](const std::string& from, const std::string& to) {
    std::string text = published;
    put_file(path, text.replace(text.find(from), from.size(), to));
    Child next([&] {
      weightcast_export* e = nullptr;
      const int code = weightcast_open(folder_.c_str(), "engine", 0, 1, nullptr, &e);
      return code == WEIGHTCAST_OK ? weightcast_close(e, 0) : code;
    });
    return next.wait();
  };
  EXPECT_EQ(open_after("\"shm\": ", "\"shm\": 9"), WEIGHTCAST_REFUSED);
  EXPECT_TRUE(std::filesystem::exists(path));
  // Nothing lives since the host has been started anew.
  EXPECT_EQ(open_after("\"boot_id\": \"", "\"boot_id\": \"x"), WEIGHTCAST_OK);
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST_F(Live, OfTwoWhoOpenARankTheSecondToPublishIsRefused) {
  int go[2];
  int ready[2];
  ASSERT_TRUE(::pipe(go) == 0 && ::pipe(ready) == 0);
  Child late([&] {
    weightcast_export* e = nullptr;
    char byte = 0;
    if (weightcast_open(folder_.c_str(), "engine", 0, 1, nullptr, &e) != 0) return 1;
    if (::write(ready[1], "x", 1) != 1 || ::read(go[0], &byte, 1) != 1) return 2;
    const int code = weightcast_publish(e);
    return weightcast_close(e, 0) == 0 ? code : 3;
  });
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  const Child first([&] { return serve_for_ever(folder_); });
  const Manifest found = manifest(Role::kEngine);
  ASSERT_EQ(::write(go[1], "x", 1), 1);
  EXPECT_EQ(late.wait(), WEIGHTCAST_REFUSED);
  EXPECT_EQ(read_manifest(found.path).generation, found.generation);
}

TEST_F(Live, WhatADeadOneHasLeftIsClearedByOneAtATime) {
  Child dead([&] { return publish(folder_, "engine") == nullptr ? 1 : 0; });
  ASSERT_EQ(dead.wait(), 0);
  auto clearing = std::make_unique<client::Clearing>();
  ASSERT_TRUE(clearing->may());
  Child late([&] {
    weightcast_export* e = nullptr;
    return weightcast_open(folder_.c_str(), "engine", 0, 1, nullptr, &e);
  });
  // Time to find the dead one's manifest; whoever comes first puts his own in its place.
  std::this_thread::sleep_for(100ms);
  EXPECT_TRUE(std::filesystem::remove(manifest_path(folder_, Role::kEngine, 0)));
  const Child first([&] { return serve_for_ever(folder_); });
  const Manifest found = manifest(Role::kEngine);
  clearing.reset();
  EXPECT_EQ(late.wait(), WEIGHTCAST_REFUSED);
  EXPECT_EQ(read_manifest(found.path).generation, found.generation);
}

TEST_F(Live, ManifestsThatNeverGotTheirNameAreRemoved) {
  const Child other([&] { return publish(dir_ / "elsewhere", "engine") == nullptr ? 1 : ::pause(); });
  const std::string there = manifest_path(dir_ / "elsewhere", Role::kEngine, 0);
  ASSERT_TRUE(comes([&] { return std::filesystem::exists(there); }));
  const std::string path = manifest_path(folder_, Role::kEngine, 0);
  std::filesystem::create_directory(folder_);
  const std::string living = fmt::format("{}.{:016x}", path, read_manifest(there).generation);
  std::string text = get_file(there);
  put_file(living, text);
  const std::string elsewhere = path + ".0123456789abcdef";
  put_file(elsewhere, text.replace(text.find("\"host\": \""), 9, "\"host\": \"x"));
  const std::string other_rank = manifest_path(folder_, Role::kEngine, 1) + ".0123456789abcde0";
  for (const std::string& file : {path + ".0123456789abcde1", other_rank}) put_file(file, "");
  Child next([&] { return publish(folder_, "engine") == nullptr ? 1 : 0; });
  EXPECT_EQ(next.wait(), 0);
  EXPECT_FALSE(std::filesystem::exists(path + ".0123456789abcde1"));
  for (const std::string& kept : {living, elsewhere, other_rank})
    EXPECT_TRUE(std::filesystem::exists(kept)) << kept;
}

TEST_F(Live, AnExportIsWithdrawnWithoutADescriptorToSpare) {
  Child engine([&] {
    weightcast_export* e = publish(folder_, "engine");
    const rlimit none{0, 0};
    if (e == nullptr || ::setrlimit(RLIMIT_NOFILE, &none) != 0) return -1;
    return weightcast_close(e, 0);
  });
  EXPECT_EQ(engine.wait(), 0);
  EXPECT_FALSE(std::filesystem::exists(manifest_path(folder_, Role::kEngine, 0)));
}

TEST_F(Live, AProcessWithoutADescriptorIsToldSo) {
  Child engine([&] {
    weightcast_export* e = nullptr;
    void* memory = nullptr;
    int segment = 0;
    if (weightcast_open(folder_.c_str(), "engine", 0, 1, nullptr, &e) != 0) return 1;
    const rlimit none{0, 0};
    if (::setrlimit(RLIMIT_NOFILE, &none) != 0) return 2;
    if (weightcast_add_segment(e, 64, &memory, &segment) != WEIGHTCAST_REFUSED) return 3;
    const std::string line = weightcast_last_error();
    return line.starts_with("engine rank 0: no shared memory can be made in /dev/shm") &&
                   line.ends_with("(ulimit -a): Too many open files")
               ? weightcast_close(e, 0)
               : 4;
  });
  EXPECT_EQ(engine.wait(), 0);
}

/// Publishes where the system refuses the segment, which has to say all of `says`, gives up and looks whether
/// anything is left.
int publish_without_room(const std::string& folder, const std::vector<std::string>& says) {
  constexpr std::int64_t kBytes = std::int64_t{1} << 20;
  weightcast_export* e = nullptr;
  void* memory = nullptr;
  int segment = 0;
  if (weightcast_open(folder.c_str(), "engine", 0, 1, nullptr, &e) != 0) return 1;
  const std::uint64_t generation = e->generation;
  const int code = weightcast_add_segment(e, kBytes, &memory, &segment);
  const std::string line = weightcast_last_error();
  for (const std::string& said : says) {
    if (line.find(said) == std::string::npos) return 2;
  }
  if (line.find('\n') != std::string::npos) return 2;
  if (weightcast_close(e, 0) != 0) return 3;
  if (has_memory(generation)) return 4;
  return std::filesystem::is_empty(folder) ? code : 5;
}

TEST_F(Live, AFullMemoryIsAnErrorThatLeavesNothing) {
  // As large as a file may be: the system refuses to reserve more.
  Child limited([&] {
    constexpr rlimit kLimit{1 << 16, 1 << 16};
    ::signal(SIGXFSZ, SIG_IGN);
    if (::setrlimit(RLIMIT_FSIZE, &kLimit) != 0) return 6;
    return publish_without_room(folder_, {"look at this process's limits (ulimit -a): File too large"});
  });
  EXPECT_EQ(limited.wait(), WEIGHTCAST_REFUSED);
  // A /dev/shm of its own that is full; not everybody may mount one.
  constexpr int kCannotMount = 77;
  Child full([&] {
    if (::unshare(CLONE_NEWNS) != 0 || ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("tmpfs", "/dev/shm", "tmpfs", 0, "size=64k") != 0) {
      return kCannotMount;
    }
    return publish_without_room(folder_, {"engine rank 0: there is no room for 1048576 bytes in /dev/shm",
                                          "hosts --clean " + folder_ + ")", "--shm-size"});
  });
  const int code = full.wait();
  EXPECT_TRUE(code == WEIGHTCAST_REFUSED || code == kCannotMount) << code;
}

/// What ends a question before a rank of the engine has heard of it, and when that rank begins to wait.
struct Ended {
  const char* name;
  bool asked;  ///< this rank, too
  bool early;  ///< it waits already when the question ends
  bool again;  ///< another question follows at once
};

class EndedQuestion : public Live, public ::testing::WithParamInterface<Ended> {};

TEST_P(EndedQuestion, IsNotWaitedFor) {
  const Ended& ended = GetParam();
  int go[2];
  ASSERT_EQ(::pipe(go), 0);
  Child engine([&] {
    weightcast_export* e = publish(folder_, "engine");
    char byte = 0;
    std::int64_t version = 0;
    if (::read(go[0], &byte, 1) != 1) return 1;
    // Without a look at the question's end it would come back with NO_ANSWER, after a test's time.
    const int code = weightcast_pause_for(e, 3, 600, &version);
    if (code != WEIGHTCAST_REFUSED) return code;
    if (!ended.again) return 2;
    if (!comes([&] { return weightcast_question(e) == 4; })) return 3;
    return weightcast_pause_for(e, 4, 600, &version) == WEIGHTCAST_OK ? 4 : 5;
  });
  const Manifest found = manifest(Role::kEngine);
  Exporter exporter(found);
  ASSERT_TRUE(comes([&] { return exporter.take("rank 0"); }));
  const auto let_it_wait = [&] { ASSERT_EQ(::write(go[1], "x", 1), 1); };
  if (ended.early) {
    let_it_wait();
    std::this_thread::sleep_for(100ms);
  }
  if (ended.asked) {
    ASSERT_TRUE(exporter.ask(WEIGHTCAST_SERVING, 3, 2));
    ASSERT_TRUE(exporter.change(WEIGHTCAST_ASKED, WEIGHTCAST_SERVING));
  }
  if (!ended.again) exporter.give_back();
  const bool asked_again = ended.again && exporter.ask(WEIGHTCAST_SERVING, 4, 2);
  if (!ended.early) let_it_wait();
  if (asked_again) {
    ASSERT_EQ(after(exporter, WEIGHTCAST_ASKED), WEIGHTCAST_PAUSED);
    ASSERT_TRUE(exporter.change(WEIGHTCAST_PAUSED, WEIGHTCAST_WRITING));
    ASSERT_TRUE(exporter.change(WEIGHTCAST_WRITING, WEIGHTCAST_WRITTEN));
    ASSERT_TRUE(exporter.change(WEIGHTCAST_WRITTEN, WEIGHTCAST_COMMITTED));
  }
  EXPECT_EQ(engine.wait(), ended.again ? 4 : 2) << exporter.reason();
}

INSTANTIATE_TEST_SUITE_P(Of, EndedQuestion,
                         ::testing::Values(Ended{"TakenBack", true, false, false},
                                           Ended{"CalledOffWhileItWaits", false, true, false},
                                           Ended{"NeverAsked", false, false, false},
                                           Ended{"AskedAnew", false, false, true},
                                           Ended{"AskedAnewWhileItWaits", false, true, true}),
                         [](const auto& of) { return std::string(of.param.name); });

TEST_F(Live, AnEngineThatWasInvalidStaysSoWhenNothingComes) {
  int told[2];
  ASSERT_EQ(::pipe(told), 0);
  Child engine([&] {
    weightcast_export* e = publish(folder_, "engine");
    std::int64_t version = 0;
    if (weightcast_pause(e, 20, &version) != WEIGHTCAST_IS_INVALID || ::write(told[1], "x", 1) != 1) return 1;
    // Asked, it waits in vain; and nobody asks.
    if (!comes([&] { return weightcast_question(e) == 4; })) return 2;
    if (weightcast_pause(e, 0.05, &version) != WEIGHTCAST_IS_INVALID) return 3;
    return weightcast_pause(e, 0.05, &version) == WEIGHTCAST_IS_INVALID ? 0 : 4;
  });
  Exporter exporter(manifest(Role::kEngine));
  ASSERT_TRUE(comes([&] { return exporter.take("rank 0"); }));
  ASSERT_TRUE(exporter.ask(WEIGHTCAST_SERVING, 3, 2));
  ASSERT_EQ(after(exporter, WEIGHTCAST_ASKED), WEIGHTCAST_PAUSED);
  ASSERT_TRUE(exporter.change(WEIGHTCAST_PAUSED, WEIGHTCAST_WRITING));
  ASSERT_TRUE(exporter.invalidate(WEIGHTCAST_WRITING, WEIGHTCAST_WRITTEN_SOME, "a test"));
  char byte = 0;
  ASSERT_EQ(::read(told[0], &byte, 1), 1);
  ASSERT_TRUE(exporter.ask(WEIGHTCAST_INVALID, 4, 2));
  EXPECT_EQ(engine.wait(), 0);
  EXPECT_EQ(exporter.state(), WEIGHTCAST_INVALID);
}

TEST_F(Live, ANewNumberEndsTheWaitForAnEarlierQuestion) {
  Child engine([&] {
    weightcast_export* e = publish(folder_, "engine");
    std::int64_t version = 0;
    // The next job step has the lock already, and may ask nobody for long.
    if (!comes([&] { return std::filesystem::exists(dir_ / "taken"); })) return 1;
    return weightcast_pause_for(e, 3, 600, &version);
  });
  Exporter exporter(manifest(Role::kEngine));
  ASSERT_TRUE(comes([&] { return exporter.take("rank 0"); }));
  put_file(dir_ / "taken", "");
  exporter.renumber(4);
  EXPECT_EQ(engine.wait(), WEIGHTCAST_REFUSED);
  EXPECT_EQ(exporter.state(), WEIGHTCAST_SERVING);
  EXPECT_EQ(exporter.update(), 4);
}

TEST_F(Live, AQuestionOfADeadJobStepIsTakenBackByTheNext) {
  const Child engine([&] { return serve_for_ever(folder_); });
  const Manifest found = manifest(Role::kEngine);
  Child job([&] {
    Exporter exporter(found);
    return exporter.take("rank 0") && exporter.ask(WEIGHTCAST_SERVING, 3, 2) ? 0 : 1;
  });
  ASSERT_EQ(job.wait(), 0);
  Exporter exporter(found);
  ASSERT_EQ(exporter.state(), WEIGHTCAST_ASKED);
  EXPECT_TRUE(exporter.take("rank 0"));
  EXPECT_EQ(exporter.state(), WEIGHTCAST_SERVING);
}

TEST_F(Live, ATrainersOfferIsReadOrWithdrawn) {
  Child trainer([&] {
    weightcast_export* e = publish(folder_, "trainer", 3);
    if (weightcast_offer(e, 4, 0.05) != WEIGHTCAST_NO_ANSWER) return 1;
    if (weightcast_offer(e, 5, 10) != 0) return 2;
    return weightcast_close(e, 10) == 0 ? 0 : 3;
  });
  {
    Exporter exporter(manifest(Role::kTrainer));
    exporter.take("rank 0");
    while (exporter.state() != WEIGHTCAST_OFFERS || exporter.version() != 5) exporter.await_change();
    ASSERT_TRUE(exporter.change(WEIGHTCAST_OFFERS, WEIGHTCAST_BEING_READ));
    std::this_thread::sleep_for(100ms);
    ASSERT_TRUE(exporter.change(WEIGHTCAST_BEING_READ, WEIGHTCAST_READ));
  }
  EXPECT_EQ(trainer.wait(), 0);
}

TEST_F(Live, AnOfferThatHasBeenReadIsSettledByTheNext) {
  int go[2];
  ASSERT_EQ(::pipe(go), 0);
  Child trainer([&] {
    weightcast_export* e = publish(folder_, "trainer");
    std::int64_t version = 0;
    char byte = 0;
    if (weightcast_wanted(e, &version) != -WEIGHTCAST_BAD_ARGUMENT) return 1;
    if (weightcast_offer(e, 1, 0) != 0 || ::read(go[0], &byte, 1) != 1) return 2;
    return weightcast_offer(e, 2, 0);
  });
  Exporter exporter(manifest(Role::kTrainer));
  ASSERT_EQ(after(exporter, WEIGHTCAST_TRAINING), WEIGHTCAST_OFFERS);
  ASSERT_TRUE(exporter.change(WEIGHTCAST_OFFERS, WEIGHTCAST_BEING_READ));
  ASSERT_TRUE(exporter.change(WEIGHTCAST_BEING_READ, WEIGHTCAST_READ));
  ASSERT_EQ(::write(go[1], "x", 1), 1);
  EXPECT_EQ(trainer.wait(), 0);
  EXPECT_EQ(in_words(exporter.look()), "offers version 2");
}

TEST_F(Live, AnOfferWaitsWhileAnEarlierOneIsRead) {
  int go[2];
  ASSERT_EQ(::pipe(go), 0);
  Child trainer([&] {
    weightcast_export* e = publish(folder_, "trainer");
    char byte = 0;
    if (weightcast_offer(e, 1, 0) != 0 || ::read(go[0], &byte, 1) != 1) return 1;
    if (weightcast_offer(e, 2, 0) != WEIGHTCAST_BAD_ARGUMENT) return 2;
    // It is not made, so that what is read is not taken for it.
    if (weightcast_offer(e, 2, 0.01) != WEIGHTCAST_NO_ANSWER) return 3;
    if (std::strstr(weightcast_last_error(), "version 1 is still being read") == nullptr) return 4;
    return weightcast_offer(e, 3, 20);
  });
  Exporter exporter(manifest(Role::kTrainer));
  ASSERT_TRUE(exporter.take("rank 0"));
  ASSERT_EQ(after(exporter, WEIGHTCAST_TRAINING), WEIGHTCAST_OFFERS);
  ASSERT_TRUE(exporter.change(WEIGHTCAST_OFFERS, WEIGHTCAST_BEING_READ));
  ASSERT_EQ(::write(go[1], "x", 1), 1);
  std::this_thread::sleep_for(100ms);
  EXPECT_EQ(exporter.version(), 1);
  ASSERT_TRUE(exporter.change(WEIGHTCAST_BEING_READ, WEIGHTCAST_READ));
  ASSERT_TRUE(comes([&] { return exporter.state() == WEIGHTCAST_OFFERS && exporter.version() == 3; }));
  ASSERT_TRUE(exporter.change(WEIGHTCAST_OFFERS, WEIGHTCAST_BEING_READ));
  ASSERT_TRUE(exporter.change(WEIGHTCAST_BEING_READ, WEIGHTCAST_READ));
  EXPECT_EQ(trainer.wait(), 0);
}

/// Calls until it is not to be called again; -1 when that was not even once so.
int in_pieces(const std::function<int()>& call) {
  int code = call();
  if (code != WEIGHTCAST_PENDING) return -1;
  while (code == WEIGHTCAST_PENDING) code = call();
  return code;
}

TEST_F(Live, WaitsInPiecesEndAsThoseInOne) {
  Child engine([&] {
    weightcast_export* e = publish(folder_, "engine");
    std::int64_t version = 0;
    if (weightcast_wait_in_pieces(e, 0.001) != 0) return 1;
    if (in_pieces([&] { return weightcast_pause(e, 0.1, &version); }) != WEIGHTCAST_NO_ANSWER) return 2;
    // Paused in an earlier piece, it knows that the update has ended.
    if (in_pieces([&] { return weightcast_pause(e, 20, &version); }) != WEIGHTCAST_REFUSED) return 3;
    if (in_pieces([&] { return weightcast_pause(e, 20, &version); }) != WEIGHTCAST_OK) return 4;
    return weightcast_resume(e);
  });
  Exporter exporter(manifest(Role::kEngine));
  ASSERT_TRUE(exporter.take("rank 0"));
  const auto ask = [&](std::uint64_t question) {
    EXPECT_TRUE(exporter.ask(WEIGHTCAST_SERVING, question, 5));
    EXPECT_EQ(after(exporter, WEIGHTCAST_ASKED), WEIGHTCAST_PAUSED);
    std::this_thread::sleep_for(20ms);
  };
  std::this_thread::sleep_for(200ms);
  ask(1);
  ASSERT_TRUE(exporter.change(WEIGHTCAST_PAUSED, WEIGHTCAST_SERVING));
  std::this_thread::sleep_for(200ms);
  ask(2);
  ASSERT_TRUE(exporter.change(WEIGHTCAST_PAUSED, WEIGHTCAST_WRITING));
  ASSERT_TRUE(exporter.change(WEIGHTCAST_WRITING, WEIGHTCAST_WRITTEN));
  ASSERT_TRUE(exporter.change(WEIGHTCAST_WRITTEN, WEIGHTCAST_COMMITTED));
  EXPECT_EQ(engine.wait(), 0);
  EXPECT_EQ(in_words(exporter.look()), "serves version 5");

  Child trainer([&] {
    weightcast_export* e = publish(folder_, "trainer");
    if (weightcast_wait_in_pieces(e, 0.001) != 0) return 1;
    if (in_pieces([&] { return weightcast_offer(e, 7, 0.1); }) != WEIGHTCAST_NO_ANSWER) return 2;
    return in_pieces([&] { return weightcast_offer(e, 8, 20); });
  });
  Exporter offers(manifest(Role::kTrainer));
  ASSERT_TRUE(comes([&] { return offers.state() == WEIGHTCAST_OFFERS && offers.version() == 8; }));
  std::this_thread::sleep_for(20ms);
  ASSERT_TRUE(offers.change(WEIGHTCAST_OFFERS, WEIGHTCAST_BEING_READ));
  ASSERT_TRUE(offers.change(WEIGHTCAST_BEING_READ, WEIGHTCAST_READ));
  EXPECT_EQ(trainer.wait(), 0);
}

/// In which state an engine is whose wait is given up, and what then is true of it.
struct Abandoned {
  const char* name;
  std::vector<weightcast_state> states;
  weightcast_state then;
  weightcast_written written;
};

class AbandonedWait : public Live, public ::testing::WithParamInterface<Abandoned> {};

TEST_P(AbandonedWait, LeavesAStateThatIsTrue) {
  int go[2];
  ASSERT_EQ(::pipe(go), 0);
  Child engine([&] {
    weightcast_export* e = publish(folder_, "engine");
    std::int64_t version = 0;
    char byte = 0;
    weightcast_wait_in_pieces(e, 0.001);
    while (weightcast_wanted(e, &version) != 1) std::this_thread::sleep_for(1ms);
    if (weightcast_pause(e, 20, &version) > WEIGHTCAST_PENDING || ::read(go[0], &byte, 1) != 1) return 1;
    if (weightcast_abandon(e, "a signal") != 0) return 2;
    if (weightcast_abandon(e, "once more changes nothing") != 0) return 3;
    // The job step may still write.
    const bool is_written = GetParam().written == WEIGHTCAST_WRITTEN_SOME;
    if (is_written && weightcast_serve(e, 9) != WEIGHTCAST_REFUSED) return 4;
    if (::read(go[0], &byte, 1) != 1) return 5;
    return is_written ? weightcast_serve(e, 1) : 0;
  });
  Exporter exporter(manifest(Role::kEngine));
  ASSERT_TRUE(exporter.take("rank 0"));
  ASSERT_TRUE(exporter.ask(WEIGHTCAST_SERVING, 3, 5));
  ASSERT_EQ(after(exporter, WEIGHTCAST_ASKED), WEIGHTCAST_PAUSED);
  weightcast_state last = WEIGHTCAST_PAUSED;
  for (const weightcast_state state : GetParam().states) {
    ASSERT_TRUE(exporter.change(last, state));
    last = state;
  }
  ASSERT_EQ(::write(go[1], "x", 1), 1);
  EXPECT_EQ(after(exporter, last), GetParam().then);
  const BlockState left = exporter.look();
  EXPECT_EQ(left.written, GetParam().written);
  EXPECT_EQ(left.state == WEIGHTCAST_INVALID ? left.cause : left.reason, "a signal");
  std::this_thread::sleep_for(20ms);
  exporter.give_back();
  ASSERT_EQ(::write(go[1], "x", 1), 1);
  EXPECT_EQ(engine.wait(), 0);
}

INSTANTIATE_TEST_SUITE_P(
    Live, AbandonedWait,
    ::testing::Values(Abandoned{"paused", {}, WEIGHTCAST_SERVING, WEIGHTCAST_WRITTEN_NONE},
                      Abandoned{"writing", {WEIGHTCAST_WRITING}, WEIGHTCAST_INVALID, WEIGHTCAST_WRITTEN_SOME},
                      Abandoned{"written",
                                {WEIGHTCAST_WRITING, WEIGHTCAST_WRITTEN},
                                WEIGHTCAST_INVALID,
                                WEIGHTCAST_WRITTEN_ALL},
                      Abandoned{"committed",
                                {WEIGHTCAST_WRITING, WEIGHTCAST_WRITTEN, WEIGHTCAST_COMMITTED},
                                WEIGHTCAST_INVALID,
                                WEIGHTCAST_WRITTEN_ALL}),
    [](const auto& test) { return test.param.name; });

TEST_F(Live, AnAbandonedOfferIsWithdrawnUnlessItIsRead) {
  int go[2];
  ASSERT_EQ(::pipe(go), 0);
  Child trainer([&] {
    weightcast_export* e = publish(folder_, "trainer");
    char byte = 0;
    if (weightcast_abandon(e, "nothing is offered") != 0) return 1;
    if (weightcast_offer(e, 1, 0) != 0 || weightcast_abandon(e, nullptr) != 0) return 2;
    if (weightcast_settle(e, 0) != WEIGHTCAST_BAD_ARGUMENT) return 3;
    if (weightcast_offer(e, 2, 0) != 0 || ::read(go[0], &byte, 1) != 1) return 4;
    if (weightcast_abandon(e, nullptr) != WEIGHTCAST_NO_ANSWER) return 5;
    return weightcast_settle(e, 20);
  });
  Exporter exporter(manifest(Role::kTrainer));
  ASSERT_TRUE(exporter.take("rank 0"));
  ASSERT_TRUE(comes([&] { return exporter.state() == WEIGHTCAST_OFFERS && exporter.version() == 2; }));
  ASSERT_TRUE(exporter.change(WEIGHTCAST_OFFERS, WEIGHTCAST_BEING_READ));
  ASSERT_EQ(::write(go[1], "x", 1), 1);
  std::this_thread::sleep_for(50ms);
  ASSERT_TRUE(exporter.change(WEIGHTCAST_BEING_READ, WEIGHTCAST_READ));
  EXPECT_EQ(trainer.wait(), 0);
}

TEST_F(Live, MemoryThatNoGpuHasIsNotPublishedAsItsOwn) {
  Child engine([&] {
    weightcast_export* e = nullptr;
    if (weightcast_open(folder_.c_str(), "engine", 0, 1, nullptr, &e) != 0) return 1;
    const std::vector<std::byte> host(4096);
    int segment = 0;
    std::int64_t offset = 0;
    const int none = weightcast_add_gpu_memory(e, host.data(), 0, &segment, &offset);
    // Without a driver there is none; with one it does not know the address.
    const int refused = weightcast_add_gpu_memory(e, host.data(), 4096, &segment, &offset);
    const bool named = std::strstr(weightcast_last_error(), "memory on a GPU: ") != nullptr;
    return none == WEIGHTCAST_BAD_ARGUMENT && refused == WEIGHTCAST_REFUSED && named ? 0 : 1;
  });
  EXPECT_EQ(engine.wait(), 0);
}

TEST_F(Live, AnswersToNobodyChangeNothing) {
  int go[2];
  ASSERT_EQ(::pipe(go), 0);
  Child engine([&] {
    weightcast_export* e = publish(folder_, "engine");
    char byte = 0;
    if (::read(go[0], &byte, 1) != 1) return 1;
    return weightcast_decline(e, "nobody") == WEIGHTCAST_BAD_ARGUMENT ? 0 : 2;
  });
  const Exporter exporter(manifest(Role::kEngine));
  ASSERT_EQ(::write(go[1], "x", 1), 1);
  EXPECT_EQ(engine.wait(), 0);
  EXPECT_EQ(in_words(exporter.look()), "serves version 1");
  EXPECT_EQ(exporter.look().written, WEIGHTCAST_WRITTEN_NONE);
}

TEST_F(Live, AnEngineWhoseMemoryIsWrittenByOthersServesNothing) {
  int go[2];
  ASSERT_EQ(::pipe(go), 0);
  Child engine([&] {
    weightcast_export* e = publish(folder_, "engine");
    char byte = 0;
    if (weightcast_invalidate(e, "loaded by others") != WEIGHTCAST_OK) return 1;
    if (::read(go[0], &byte, 1) != 1) return 2;
    // As soon as somebody asks it is too late.
    if (weightcast_invalidate(e, "later") != WEIGHTCAST_REFUSED) return 3;
    std::int64_t version = 0;
    return weightcast_pause(e, 20, &version) == WEIGHTCAST_IS_INVALID ? 0 : 4;
  });
  Exporter exporter(manifest(Role::kEngine));
  ASSERT_TRUE(comes([&] { return exporter.state() == WEIGHTCAST_INVALID; }));
  EXPECT_EQ(in_words(exporter.look()), "invalid: some of version 1 is written: loaded by others");
  EXPECT_EQ(exporter.current_version(), std::nullopt);
  ASSERT_TRUE(comes([&] { return exporter.take("rank 0"); }));
  ASSERT_TRUE(exporter.ask(WEIGHTCAST_INVALID, 3, 2));
  ASSERT_EQ(::write(go[1], "x", 1), 1);
  ASSERT_EQ(after(exporter, WEIGHTCAST_ASKED), WEIGHTCAST_PAUSED);
  ASSERT_TRUE(exporter.change(WEIGHTCAST_PAUSED, WEIGHTCAST_WRITING));
  // All of a version that was not committed, which the next update would commit without sending.
  ASSERT_TRUE(exporter.invalidate(WEIGHTCAST_WRITING, WEIGHTCAST_WRITTEN_ALL, "a test"));
  EXPECT_EQ(engine.wait(), 0);
}

TEST_F(Live, AnInvalidEngineMayLoadItselfAnew) {
  Child engine([&] {
    weightcast_export* e = publish(folder_, "engine");
    std::int64_t version = 0;
    if (weightcast_pause(e, 20, &version) != WEIGHTCAST_IS_INVALID) return 1;
    return weightcast_serve(e, 9);
  });
  Exporter exporter(manifest(Role::kEngine));
  ASSERT_TRUE(comes([&] { return exporter.take("rank 0"); }));
  ASSERT_TRUE(exporter.ask(WEIGHTCAST_SERVING, 3, 2));
  ASSERT_EQ(after(exporter, WEIGHTCAST_ASKED), WEIGHTCAST_PAUSED);
  ASSERT_TRUE(exporter.change(WEIGHTCAST_PAUSED, WEIGHTCAST_WRITING));
  ASSERT_TRUE(exporter.invalidate(WEIGHTCAST_WRITING, WEIGHTCAST_WRITTEN_SOME, "a test"));
  EXPECT_EQ(engine.wait(), 0);
  EXPECT_EQ(in_words(exporter.look()), "serves version 9");
}

TEST_F(Live, AForkedChildIsNoExporter) {
  Child engine([&] {
    weightcast_export* e = publish(folder_, "engine");
    Child forked([&] {
      std::int64_t version = 0;
      return weightcast_pause(e, 1, &version);
    });
    return forked.wait();
  });
  EXPECT_EQ(engine.wait(), WEIGHTCAST_BAD_ARGUMENT);
}

TEST_F(Live, AForkedChildIsToldThatItsParentLives) {
  Child engine([&] {
    publish(folder_, "engine");
    Child forked([&] {
      weightcast_export* e = nullptr;
      return weightcast_open(folder_.c_str(), "engine", 0, 1, nullptr, &e);
    });
    return forked.wait();
  });
  EXPECT_EQ(engine.wait(), WEIGHTCAST_REFUSED);
}

/// What is wrong with a manifest, and what the line says of it.
struct Wrong {
  const char* name;
  const char* from;
  const char* to;
  const char* says;
};

class WrongManifest : public Live, public ::testing::WithParamInterface<Wrong> {};

TEST_P(WrongManifest, IsRefusedByName) {
  Child engine([&] { return publish(folder_, "engine") == nullptr ? 1 : 0; });
  ASSERT_EQ(engine.wait(), 0);
  const std::string path = manifest_path(folder_, Role::kEngine, 0);
  const std::string published = get_file(path);
  std::string text = published;
  const std::size_t at = text.find(GetParam().from);
  ASSERT_NE(at, std::string::npos) << text;
  text.replace(at, std::strlen(GetParam().from), GetParam().to);
  put_file(path, text);
  try {
    const Manifest found = read_manifest(path);
    require_reachable(found);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(path), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find(GetParam().says), std::string::npos) << error.what();
  }
  put_file(path, published);
}

INSTANTIATE_TEST_SUITE_P(
    Manifests, WrongManifest,
    ::testing::Values(
        Wrong{"Format", "\"weightcast\": 1", "\"weightcast\": 2",
              "'weightcast' is not 1, the format that this program knows; it was published by client "},
        Wrong{"FormatOfNobody", R"("weightcast": 1, "role": "engine", "rank": 0, "ranks": 1, "client")",
              R"("weightcast": 2, "role": "engine", "rank": 0, "ranks": 1, "writer")",
              "it was published by a client that does not say its version, and this is weightcast "},
        Wrong{"Role", "\"engine\"", "\"driver\"", "'role'"},
        Wrong{"Rank", "\"rank\": 0", "\"rank\": 1", "'rank'"},
        Wrong{"NoRank", "\"rank\": 0, ", "", "'rank' is missing"},
        Wrong{"Host", "\"host\": \"", "\"host\": \"x", "is of host x"},
        Wrong{"Boot", "\"boot_id\": \"", "\"boot_id\": \"x", "started anew"},
        Wrong{"User", "\"uid\": ", "\"uid\": 9", "'control' names no shared memory of this exporter"},
        Wrong{"Container", "\"shm\": ", "\"shm\": 9", "/dev/shm"},
        Wrong{"Generation", "\"generation\": \"", "\"generation\": \"z", "'generation'"},
        Wrong{"Path", "/weightcast-", "/../etc/", "names no shared memory"},
        Wrong{"ControlOfAll", "-control\"", "-\"", "'control' names no shared memory"},
        Wrong{"Memory", "-0\", \"bytes\"", "-control\", \"bytes\"", "'name' names no shared memory"},
        Wrong{"Kind", "\"shm\", ", "\"tape\", ", "'kind'"},
        Wrong{"GpuWithoutADevice", "\"kind\": \"shm\"", "\"kind\": \"cuda_ipc\"", "'device'"},
        Wrong{"GpuOfAnotherForm", "\"kind\": \"shm\"",
              "\"device\": \"GPU-1\\u001b[2J\", \"kind\": \"cuda_ipc\"", "'device'"},
        Wrong{"GpuHandle", "\"kind\": \"shm\"",
              "\"handle\": \"77\", \"device\": \"GPU-00000000-0000-0000-0000-000000000000\", "
              "\"kind\": \"cuda_ipc\"",
              "'handle'"},
        Wrong{"PiecesOfAGpu", "\"kind\": \"shm\"",
              "\"pieces\": [{\"fd\": 3, \"bytes\": 3999}], "
              "\"device\": \"GPU-00000000-0000-0000-0000-000000000000\", \"kind\": \"cuda_fd\"",
              "'pieces'"},
        Wrong{"PiecesThatAreTooLarge", "\"kind\": \"shm\"",
              "\"pieces\": [{\"fd\": 3, \"bytes\": 9223372036854775807}, {\"fd\": 4, \"bytes\": 4001}], "
              "\"device\": \"GPU-00000000-0000-0000-0000-000000000000\", \"kind\": \"cuda_fd\"",
              "'"},
        Wrong{"PieceWithoutAFile", "\"kind\": \"shm\"",
              "\"pieces\": [{\"fd\": -1, \"bytes\": 4000}], "
              "\"device\": \"GPU-00000000-0000-0000-0000-000000000000\", \"kind\": \"cuda_fd\"",
              "'fd'"},
        Wrong{"Bytes", "\"bytes\": 4000", "\"bytes\": -1", "'bytes'"},
        Wrong{"Dtype", "\"BF16\"", "\"BF61\"", "'dtype'"},
        Wrong{"Shape", "[10, 100]", "[10, 101]", "overlap"},
        Wrong{"Huge", "[10, 100]", "[4000000000, 4000000000]", "beyond its segment"},
        Wrong{"Strides", "\"strides\": [100, 1]", "\"strides\": [1]", "'strides'"},
        Wrong{"Segment", "\"segment\": 0", "\"segment\": 1", "'segment'"},
        Wrong{"Offset", "\"offset\": 2000", "\"offset\": 1998", "overlap"},
        Wrong{"Behind", "\"offset\": 2000", "\"offset\": 2002", "beyond its segment"},
        Wrong{"Json", "\"entries\"", "entries", "line"}),
    [](const auto& of) { return std::string(of.param.name); });

}  // namespace

}  // namespace weightcast
