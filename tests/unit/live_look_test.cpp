// What somebody who disturbs nobody sees of exporters: each of them, and the job step beside them, in a
// process of its own, because locks are a process's.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/block.hpp"
#include "core/error.hpp"
#include "live/dead_exporters.hpp"
#include "live/exporter.hpp"
#include "live/folder.hpp"
#include "live/open_block.hpp"
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

/// Publishes one tensor; false on failure.
bool publish(const std::string& folder, const char* role, int rank, int ranks) {
  weightcast_export* e = nullptr;
  void* memory = nullptr;
  int segment = 0;
  const std::int64_t shape[] = {10};
  return weightcast_open(folder.c_str(), role, rank, ranks, nullptr, &e) == 0 &&
         weightcast_add_segment(e, 20, &memory, &segment) == 0 &&
         weightcast_add_entry(e, "norm", "BF16", 1, shape, nullptr, segment, 0) == 0 &&
         (std::strcmp(role, "engine") != 0 || weightcast_serve(e, 1) == 0) && weightcast_publish(e) == 0;
}

class LiveLook : public ::testing::Test {
 protected:
  /// What is left of killed exporters goes, whatever became of their manifests.
  void TearDown() override {
    for (auto& child : children_) child->kill();
    for (const std::string& stem : stems_) {
      for (const char* what : {"0", "control"}) ::shm_unlink((stem + what).c_str());
    }
  }

  /// An exporter that does nothing any more.
  Child& start(const char* role, int rank = 0, int ranks = 1) {
    children_.push_back(std::make_unique<Child>([&] {
      if (!publish(folder_, role, rank, ranks)) return 1;
      ::pause();
      return 0;
    }));
    const std::string path =
        manifest_path(folder_, std::string(role) == "engine" ? Role::kEngine : Role::kTrainer, rank);
    const auto give_up = std::chrono::steady_clock::now() + 20s;
    while (!std::filesystem::exists(path)) {
      if (std::chrono::steady_clock::now() > give_up) throw IoError("no manifest");
      std::this_thread::sleep_for(1ms);
    }
    const std::string control = read_manifest(path).control;
    stems_.push_back(control.substr(0, control.size() - std::strlen("control")));
    return *children_.back();
  }

  std::string engine_ = "/engine-0.json";

  /// Changes a text of the engine's manifest.
  void change_engine(const std::string& from, const std::string& to) const {
    std::string text = get_file(folder_ + engine_);
    const std::size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << text;
    put_file(folder_ + engine_, text.replace(at, from.size(), to));
  }

  TempDir dir_;
  std::string folder_ = dir_ / "weights";
  std::vector<std::unique_ptr<Child>> children_;
  std::vector<std::string> stems_;
};

TEST_F(LiveLook, StatesAreSeenWhoeverHasTheEngine) {
  start("engine");
  const Manifest found = read_manifest(folder_ + engine_);
  const OpenBlock block(found, Access::kRead);
  EXPECT_TRUE(block.lives());
  EXPECT_EQ(in_words(block.look()), "serves version 1");
  EXPECT_EQ(block.updater(), 0);
  EXPECT_EQ(block.mapped_by(), 0);
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  Child job([&] {
    Exporter exporter(found);
    // This look takes no lock: the job step has the engine.
    if (!exporter.take("rank 3 on\x1b[2J here") || !exporter.ask(WEIGHTCAST_SERVING, 12, 8)) return 1;
    static_cast<void>(!::write(ready[1], "x", 1));
    ::pause();
    return 0;
  });
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  const BlockState asked = block.look();
  EXPECT_EQ(in_words(asked), "is asked for version 8");
  EXPECT_EQ(asked.update, 12);
  EXPECT_EQ(asked.owner.find('\x1b'), std::string::npos);
  EXPECT_NE(asked.owner.find("rank 3 on"), std::string::npos);
  EXPECT_GT(block.updater(), 0);
  EXPECT_EQ(block.mapped_by(), 1);
  Child other([&] {
    const Exporter exporter(found, Access::kRead);
    static_cast<void>(!::write(ready[1], "x", 1));
    ::pause();
    return 0;
  });
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  EXPECT_EQ(block.mapped_by(), std::filesystem::exists("/proc/locks") ? 2 : 1);
  job.kill();
  other.kill();
  EXPECT_EQ(block.updater(), 0);
  EXPECT_EQ(block.mapped_by(), 0);
  children_.front()->kill();
  EXPECT_FALSE(block.lives());
}

TEST_F(LiveLook, WhatIsCommittedIsTheEnginesVersion) {
  start("engine");
  Exporter exporter(read_manifest(folder_ + engine_));
  EXPECT_EQ(exporter.current_version(), 1);
  ASSERT_TRUE(exporter.take("rank 0"));
  ASSERT_TRUE(exporter.ask(WEIGHTCAST_SERVING, 12, 8));
  EXPECT_EQ(exporter.current_version(), std::nullopt);
  ASSERT_TRUE(exporter.change(WEIGHTCAST_ASKED, WEIGHTCAST_WRITTEN));
  EXPECT_EQ(exporter.current_version(), std::nullopt);
  // It is about to serve it.
  ASSERT_TRUE(exporter.change(WEIGHTCAST_WRITTEN, WEIGHTCAST_COMMITTED));
  EXPECT_EQ(exporter.current_version(), 8);
}

TEST_F(LiveLook, WordsOfStates) {
  BlockState state;
  state.version = 7;
  state.asked = 8;
  state.written = WEIGHTCAST_WRITTEN_SOME;
  const std::vector<std::pair<weightcast_state, std::string>> words{
      {WEIGHTCAST_NONE, "holds no version yet"},
      {WEIGHTCAST_SERVING, "serves version 7"},
      {WEIGHTCAST_ASKED, "is asked for version 8"},
      {WEIGHTCAST_PAUSED, "paused for version 8"},
      {WEIGHTCAST_WRITING, "being written: version 8"},
      {WEIGHTCAST_WRITTEN, "written, not committed: version 8"},
      {WEIGHTCAST_COMMITTED, "committed, not yet served: version 8"},
      {WEIGHTCAST_TRAINING, "trains"},
      {WEIGHTCAST_OFFERS, "offers version 7"},
      {WEIGHTCAST_BEING_READ, "being read: version 7"},
      {WEIGHTCAST_READ, "version 7 has been read"}};
  for (const auto& [of, expected] : words) {
    state.state = of;
    EXPECT_EQ(in_words(state), expected);
  }
  state.state = static_cast<weightcast_state>(15);
  EXPECT_NE(in_words(state).find("15"), std::string::npos);
  state.lost = 6;
  state.cause = "a cause";
  state.state = WEIGHTCAST_INVALID;
  EXPECT_EQ(in_words(state), "invalid: some of version 6 is written: a cause");
  state.reason = "a test";
  EXPECT_EQ(in_words(state),
            "invalid: some of version 6 is written: a cause (the last update did not take place: a test)");
  state.state = WEIGHTCAST_SERVING;
  EXPECT_EQ(in_words(state), "serves version 7 (the last update did not take place: a test)");
}

TEST_F(LiveLook, MemoryThatIsLookedAtCannotBeWritten) {
  start("engine");
  const Exporter exporter(read_manifest(folder_ + engine_), Access::kRead);
  std::byte byte{1};
  exporter.segments().front()->read(0, std::span(&byte, 1));
  EXPECT_EQ(byte, std::byte{0});
  EXPECT_DEATH(exporter.segments().front()->write(0, std::span(&byte, 1)), "");
}

TEST_F(LiveLook, MemoryThatHasBeenCutIsNoticedAndSurvived) {
  for (const char* what : {"control", "0"}) {
    SCOPED_TRACE(what);
    start("engine");
    const Exporter exporter(read_manifest(folder_ + engine_), Access::kRead);
    EXPECT_NO_THROW(exporter.require_there());
    std::filesystem::resize_file("/dev/shm" + stems_.back() + what, 0);
    std::byte byte{1};
    exporter.segments().front()->read(0, std::span(&byte, 1));
    EXPECT_EQ(byte, std::byte{0});
    static_cast<void>(exporter.look());
    try {
      exporter.require_there();
      FAIL() << "it is taken for whole";
    } catch (const IoError& error) {
      for (const std::string& words : {folder_ + engine_, std::string("has shrunk"), std::string("anew")})
        EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
    }
    children_.back()->kill();
    std::filesystem::remove(folder_ + engine_);
  }
}

TEST_F(LiveLook, AnExporterOfAnotherNamespaceIsNoJobStep) {
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  children_.push_back(std::make_unique<Child>([&] {
    if (!publish(folder_, "engine", 0, 1)) return 1;
    // As it does for a moment, to see whether a job step is gone.
    const int file = ::shm_open(read_manifest(folder_ + engine_).control.c_str(), O_RDWR | O_CLOEXEC, 0);
    if (!client::take_lock(file, WEIGHTCAST_LOCK_UPDATE)) return 2;
    static_cast<void>(!::write(ready[1], "x", 1));
    ::pause();
    return 0;
  }));
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  // There it has another number.
  change_engine("}, \"pid\": ", "}, \"pid\": 9");
  const Manifest found = read_manifest(folder_ + engine_);
  stems_.push_back(found.control.substr(0, found.control.size() - std::strlen("control")));
  EXPECT_EQ(OpenBlock(found, Access::kRead).updater(), 0);
  EXPECT_FALSE(Exporter(found).take("rank 0"));
}

TEST_F(LiveLook, MemoryOfAnotherUserIsRefused) {
  if (::getuid() != 0) GTEST_SKIP() << "needs root, who can give a file away";
  start("engine");
  const Manifest found = read_manifest(folder_ + engine_);
  const std::string memory = "/dev/shm" + found.segments.front().name;
  constexpr uid_t kNobody = 65534;
  ASSERT_EQ(::chown(memory.c_str(), kNobody, static_cast<gid_t>(-1)), 0);
  try {
    const Exporter exporter(found);
    FAIL() << "mapped";
  } catch (const IoError& error) {
    EXPECT_NE(std::string(error.what()).find("is of user 65534"), std::string::npos) << error.what();
  }
}

TEST_F(LiveLook, AFolderIsListedWhateverIsWrongInIt) {
  EXPECT_THROW(find_manifests(folder_), IoError);
  std::filesystem::create_directory(folder_);
  EXPECT_TRUE(find_manifests(folder_).empty());
  start("trainer", 1, 2);
  for (const char* name : {"/engine-0.json", "/engine-10.json", "/engine-9.json", "/engine-01.json",
                           "/engine-.json", "/engine--1.json", "/engine-1.json.new", "/server.json"}) {
    put_file(folder_ + name, "{}");
  }
  // Another's, under a name of its own.
  std::filesystem::copy(folder_ + "/trainer-1.json", folder_ + "/trainer-0.json");
  const std::vector<FoundManifest> all = find_manifests(folder_);
  std::vector<std::pair<Role, std::int64_t>> seen;
  for (const FoundManifest& found : all) {
    seen.emplace_back(found.role, found.rank);
    EXPECT_EQ(found.manifest.has_value(), found.path.ends_with("trainer-1.json")) << found.path;
    EXPECT_NE(found.manifest.has_value(), found.wrong.has_value());
    const std::string wrong = found.wrong ? found.wrong->what() : found.path;
    EXPECT_NE(wrong.find(found.path), std::string::npos) << wrong;
  }
  EXPECT_EQ(seen, (std::vector<std::pair<Role, std::int64_t>>{{Role::kTrainer, 0},
                                                              {Role::kTrainer, 1},
                                                              {Role::kEngine, 0},
                                                              {Role::kEngine, 9},
                                                              {Role::kEngine, 10}}));
}

TEST_F(LiveLook, RecordsOfCommits) {
  std::filesystem::create_directory(folder_);
  EXPECT_TRUE(find_commits(folder_).empty());
  put_file(folder_ + "/commit-9.json", "{\"weightcast\": 1, \"update\": 9, \"version\": 4}\n");
  put_file(folder_ + "/commit-10.json", "void\n");
  put_file(folder_ + "/commit-11.json", "");
  put_file(folder_ + "/commit-12.json", "{}");
  put_file(folder_ + "/commit-13.json.new", "{}");
  const std::vector<CommitRecord> records = find_commits(folder_);
  ASSERT_EQ(records.size(), 4);
  EXPECT_TRUE(records[0].wrong.has_value());
  EXPECT_EQ(records[1].update, 11);
  EXPECT_FALSE(records[1].version.has_value());
  EXPECT_FALSE(records[2].version.has_value());
  EXPECT_EQ(records[3].version, 4);
}

TEST(CommitRecords, AnswerWhatTheyHaveBrought) {
  CommitRecord record;
  record.names = "00000000000000aa";
  const Choice some{.id = "0000000000000001"};
  const Choice others{.id = "0000000000000002"};
  EXPECT_TRUE(brings(record, "00000000000000aa", nullptr));
  EXPECT_TRUE(brings(record, "00000000000000aa", &some));
  // Of a model with draft layers it is not known to have brought anything.
  EXPECT_FALSE(brings(record, "00000000000000bb", nullptr));
  EXPECT_FALSE(brings(record, "00000000000000bb", &some));
  record.partial = some;
  EXPECT_FALSE(brings(record, "00000000000000aa", nullptr));
  EXPECT_TRUE(brings(record, "00000000000000aa", &some));
  EXPECT_FALSE(brings(record, "00000000000000aa", &others));
  EXPECT_FALSE(brings(record, "00000000000000bb", &some));
  EXPECT_FALSE(brings(CommitRecord(), "00000000000000aa", nullptr));
}

TEST_F(LiveLook, AManifestCannotNameAnothersMemory) {
  start("engine", 0, 2);
  start("engine", 1, 2);
  children_[0]->kill();
  const Manifest dead = read_manifest(folder_ + engine_);
  const Manifest living = read_manifest(folder_ + "/engine-1.json");
  const std::string own = get_file(folder_ + engine_);
  for (const std::string& control : {std::string("/weightcast-"), living.control}) {
    put_file(folder_ + engine_, own);
    change_engine(dead.control, control);
    const Cleaning cleaning = remove_dead_exporters(folder_);
    ASSERT_EQ(cleaning.kept.size(), 1);
    EXPECT_NE(cleaning.kept.front().find("'control'"), std::string::npos) << cleaning.kept.front();
    EXPECT_TRUE(std::filesystem::exists("/dev/shm" + living.control));
    EXPECT_TRUE(std::filesystem::exists("/dev/shm" + living.segments.front().name));
    EXPECT_TRUE(std::filesystem::exists(folder_ + engine_));
  }
}

TEST_F(LiveLook, WhatKilledProcessesHaveLeftWithoutAName) {
  start("engine", 0, 2);
  start("engine", 1, 2).kill();
  const auto unfinished = [&](const Manifest& manifest, int rank) {
    char name[64];
    std::snprintf(name, sizeof name, "/engine-%d.json.%016llx", rank,
                  static_cast<unsigned long long>(manifest.generation));
    put_file(folder_ + name, "");
    return folder_ + name;
  };
  const std::string of_living = unfinished(read_manifest(folder_ + engine_), 0);
  const std::string of_dead = unfinished(read_manifest(folder_ + "/engine-1.json"), 1);
  Manifest elsewhere;
  elsewhere.generation = 0x0123456789abcdef;
  const std::string of_nobody = unfinished(elsewhere, 2);
  elsewhere.generation = 0xfedcba9876543210;
  const std::string old = unfinished(elsewhere, 3);
  std::filesystem::last_write_time(old, std::filesystem::file_time_type::clock::now() - 2h);
  const std::string record = folder_ + "/commit-7.json.new";
  for (const char* other : {"/commit-x.json.new", "/engine-0.json.0123"}) put_file(folder_ + other, "");
  // While a job step has an engine, the record is its own.
  put_file(record, "{}");
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  Child job([&] {
    Exporter exporter(read_manifest(folder_ + engine_));
    if (!exporter.take("rank 0")) return 1;
    static_cast<void>(!::write(ready[1], "x", 1));
    ::pause();
    return 0;
  });
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  Cleaning cleaning = remove_dead_exporters(folder_);
  EXPECT_TRUE(std::filesystem::exists(record));
  EXPECT_TRUE(std::filesystem::exists(of_living));
  EXPECT_TRUE(std::filesystem::exists(of_nobody));
  EXPECT_FALSE(std::filesystem::exists(of_dead));
  EXPECT_FALSE(std::filesystem::exists(old));
  const auto kept = [&](const std::string& path) {
    return std::ranges::any_of(cleaning.kept,
                               [&](const std::string& line) { return line.starts_with(path); });
  };
  EXPECT_TRUE(kept(record));
  EXPECT_TRUE(kept(of_nobody));
  EXPECT_FALSE(kept(of_living));
  job.kill();
  cleaning = remove_dead_exporters(folder_);
  EXPECT_FALSE(std::filesystem::exists(record));
  EXPECT_TRUE(std::filesystem::exists(folder_ + "/commit-x.json.new"));
  EXPECT_TRUE(std::filesystem::exists(folder_ + "/engine-0.json.0123"));
}

TEST_F(LiveLook, WhatCannotBeRemovedDoesNotKeepTheRest) {
  start("engine", 0, 2).kill();
  start("engine", 1, 2).kill();
  const std::string in_the_way = "/dev/shm" + stems_[0] + "0";
  std::filesystem::remove(in_the_way);
  std::filesystem::create_directory(in_the_way);
  Cleaning cleaning = remove_dead_exporters(folder_);
  ASSERT_FALSE(cleaning.kept.empty());
  EXPECT_NE(cleaning.kept.front().find(in_the_way), std::string::npos) << cleaning.kept.front();
  EXPECT_FALSE(std::filesystem::exists("/dev/shm" + stems_[1] + "control"));
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/engine-1.json"));
  EXPECT_TRUE(std::filesystem::exists(folder_ + engine_));
  std::filesystem::remove(in_the_way);
  ASSERT_EQ(::mkfifo(in_the_way.c_str(), 0600), 0);
  cleaning = remove_dead_exporters(folder_);
  EXPECT_TRUE(cleaning.kept.empty());
  EXPECT_FALSE(std::filesystem::exists(in_the_way));
  EXPECT_FALSE(std::filesystem::exists(folder_ + engine_));
}

TEST_F(LiveLook, AnExporterWhoseParentHasNotHeardOfItsEndIsDead) {
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t zombie = ::fork();
  if (zombie == 0) {
    const bool published = publish(folder_, "engine", 0, 1);
    static_cast<void>(!::write(ready[1], published ? "y" : "n", 1));
    ::_exit(0);
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  ASSERT_EQ(byte, 'y');
  siginfo_t ended = {};
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(zombie), &ended, WEXITED | WNOWAIT), 0);
  const std::string control = read_manifest(folder_ + engine_).control;
  ::shm_unlink(control.c_str());
  ::shm_unlink((control.substr(0, control.size() - std::strlen("control")) + "0").c_str());
  EXPECT_TRUE(is_dead(read_manifest(folder_ + engine_)));
  const Cleaning cleaning = remove_dead_exporters(folder_);
  EXPECT_TRUE(cleaning.kept.empty());
  EXPECT_FALSE(std::filesystem::exists(folder_ + engine_));
  EXPECT_EQ(::waitpid(zombie, nullptr, 0), zombie);
}

TEST_F(LiveLook, OnlyWhatIsKnownToBeDeadIsRemoved) {
  start("engine", 0, 2);
  start("engine", 1, 2);
  start("trainer");
  children_[0]->kill();
  const auto there = [&](std::size_t number) {
    return std::filesystem::exists("/dev/shm" + stems_[number] + "0") &&
           std::filesystem::exists("/dev/shm" + stems_[number] + "control");
  };
  // Of another host it may live.
  const std::string own = get_file(folder_ + engine_);
  for (const auto& [from, to] : {std::pair("\"host\": \"", "\"host\": \"x"),
                                 {"\"boot_id\": \"", "\"boot_id\": \"x"},
                                 {"\"uid\": ", "\"uid\": 9"},
                                 {"\"shm\": ", "\"shm\": 9"}}) {
    put_file(folder_ + engine_, own);
    change_engine(from, to);
    const Cleaning cleaning = remove_dead_exporters(folder_);
    ASSERT_EQ(cleaning.kept.size(), 1);
    EXPECT_NE(cleaning.kept.front().find(folder_ + engine_), std::string::npos);
    EXPECT_TRUE(std::filesystem::exists(folder_ + engine_));
  }
  // Without its manifest its memory was found by its lock.
  EXPECT_FALSE(there(0));
  EXPECT_TRUE(there(1));
  EXPECT_TRUE(there(2));
  std::filesystem::remove(folder_ + engine_);
  // And with it both go.
  children_[1]->kill();
  const Cleaning cleaning = remove_dead_exporters(folder_);
  EXPECT_TRUE(cleaning.kept.empty());
  EXPECT_GE(cleaning.removed.size(), 1);
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/engine-1.json"));
  EXPECT_FALSE(std::filesystem::exists("/dev/shm" + stems_[1] + "control"));
  EXPECT_TRUE(there(2));
  EXPECT_TRUE(std::filesystem::exists(folder_ + "/trainer-0.json"));
}

}  // namespace

}  // namespace weightcast
