// Files that are replaced while calls of the system fail, others interfere, or a second job wants the same.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "storage/left_overs.hpp"
#include "storage/model_files.hpp"
#include "storage/output_lock.hpp"
#include "storage/partial_file.hpp"
#include "storage/removal.hpp"
#include "storage/unfinished.hpp"
#include "storage_files.hpp"
#include "support/files.hpp"
#include "support/other_user.hpp"

namespace {

/// Call number `number` fails, from 0, or all do from there on.
struct Rule {
  int number = 0;
  int error = EIO;
  bool all = false;
  bool does_it = false;  ///< the call is done and says that it has failed
  bool dies = false;     ///< the process ends there, before the call or, with `does_it`, after it
  int counted = 0;
};
std::map<std::string, Rule> failing;  ///< by the name of the call
bool quick = false;                   ///< nothing needs to be on the disk
bool plain = false;                   ///< the file system has no renames that look at what they replace
std::function<void(std::string_view call)> meanwhile;  ///< what others do before a call

int result_of(const char* call, const std::function<long()>& run) {
  // Others call what they will, too.
  if (const auto others = std::exchange(meanwhile, nullptr); others) {
    others(call);
    if (!meanwhile) meanwhile = others;
  }
  const auto rule = failing.find(call);
  const int now = rule == failing.end() ? 0 : rule->second.counted++;
  if (rule == failing.end() || now < rule->second.number ||
      (now > rule->second.number && !rule->second.all)) {
    return static_cast<int>(run());
  }
  if (rule->second.does_it) run();
  if (rule->second.dies) ::_exit(1);
  errno = rule->second.error;
  return -1;
}

}  // namespace

// These stand before the system's own.
extern "C" int rename(const char* from, const char* to) noexcept {
  return result_of("rename", [&] { return ::syscall(SYS_renameat, AT_FDCWD, from, AT_FDCWD, to); });
}
extern "C" int renameat2(int, const char* from, int, const char* to, unsigned flags) noexcept {
  if (plain) {
    errno = EINVAL;
    return -1;
  }
  return result_of("rename", [&] { return ::syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, flags); });
}
extern "C" int link(const char* from, const char* to) noexcept {
  return result_of("link", [&] { return ::syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0); });
}
extern "C" int unlink(const char* path) noexcept {
  return result_of("unlink", [&] { return ::syscall(SYS_unlinkat, AT_FDCWD, path, 0); });
}
extern "C" int fsync(int fd) {
  return result_of("fsync", [&] { return quick ? 0 : ::syscall(SYS_fsync, fd); });
}
namespace weightcast {
namespace {

namespace fs = std::filesystem;
using namespace testing_files;
using test_support::folder_contents;

class ReplacementTest : public ::testing::Test {
 protected:
  void TearDown() override {
    failing = {};
    quick = false;
    plain = false;
    meanwhile = nullptr;
  }

  /// A call is done or not before it fails; renames look at what they replace or cannot.
  static constexpr std::array<std::pair<bool, bool>, 4> kBoth{
      {{false, false}, {false, true}, {true, false}, {true, true}}};
  static constexpr std::int64_t kSmallFiles = 80;  // so that there are several, with an index
  std::vector<DatasetSpec> datasets_{
      {"a", DType::kF32, Shape{10}}, {"b", DType::kF32, Shape{10}}, {"c", DType::kF32, Shape{15}}};
  TempDir dir_;
  std::string folder_ = dir_ / "model";

  void put(std::int64_t version) {
    auto writer = create_safetensors(folder_, "{}", datasets_, kSmallFiles, version);
    write_all(*writer, datasets_);
    writer->commit();
  }
};

TEST_F(ReplacementTest, AllOrNothingWhicheverCallFails) {
  for (const char* call : {"rename", "link", "fsync"}) {
    for (const auto& [does_it, without] : kBoth) {
      plain = without;
      put(1);
      const auto old = folder_contents(folder_);
      ASSERT_EQ(old.size(), 4U);
      bool reached = true;
      for (int number = 0; reached; ++number) {
        failing = {{call, {number, number % 2 == 0 ? EIO : ENOSPC, false, does_it}}};
        try {
          put(2);
          reached = false;
        } catch (const IoError& error) {
          // The index of what failed is in the line, and what became of the old.
          EXPECT_TRUE(has(error.what(), {folder_}));
        }
        failing = {};
        if (reached) {
          ASSERT_TRUE(folder_contents(folder_) == old) << call << " " << number;
        }
      }
      EXPECT_NE(folder_contents(folder_), old);
      EXPECT_EQ(folder_contents(folder_).size(), 4U);
    }
  }
}

TEST_F(ReplacementTest, NothingIsThereWhenNothingWas) {
  for (int number = 0; number < 4; ++number) {
    failing = {{"rename", {number}}};
    EXPECT_TRUE(has(message_of<IoError>([&] { put(1); }), {"rename", "Input/output error", "intact"}));
    EXPECT_TRUE(folder_contents(folder_).empty()) << number;
  }
}

TEST_F(ReplacementTest, WhereAFileHasOneNameOnly) {
  put(1);
  const auto old = folder_contents(folder_);
  // Old files are moved out of the way then: two renames each.
  for (int number = 0; number < 8; ++number) {
    failing = {{"link", {0, EPERM, true}}, {"rename", {number}}};
    EXPECT_TRUE(has(message_of<IoError>([&] { put(2); }), {folder_, "Input/output error", "intact"}));
    failing = {};
    ASSERT_TRUE(folder_contents(folder_) == old) << number;
  }
  failing = {{"link", {0, EPERM, true}}};
  put(2);
  failing = {};
  EXPECT_EQ(folder_contents(folder_).size(), 4U);
  EXPECT_NE(folder_contents(folder_), old);
}

TEST_F(ReplacementTest, AnOldFileThatCannotBePutBackIsNamed) {
  put_file(dir_ / "a.h5", "what was there");
  failing = {{"link", {0, EPERM, true}}};
  PartialFile file(dir_ / "a.h5");
  file.place();
  failing = {{"rename", {0, EIO, true}}};
  const std::string message = message_of<NotPutBack>([&] { file.take_back(); });
  failing = {};
  EXPECT_TRUE(has(message, {"cannot put " + (dir_ / "a.h5"), "Input/output error", ".old"}));
  const std::string kept = message.substr(message.rfind(' ') + 1);
  EXPECT_EQ(get_file(kept), "what was there");
}

TEST_F(ReplacementTest, WhatWasRemovedOrReplacedTakesNoName) {
  put_file(dir_ / "a.h5", "what was there");
  for (const bool replaced : {false, true}) {
    auto writer = create_hdf5(dir_ / "a.h5", {}, datasets_);
    write_all(*writer, datasets_);
    for (const std::string& name : names_in(dir_.string())) {
      if (!name.ends_with(".partial")) continue;
      fs::remove(dir_ / name);
      if (replaced) put_file(dir_ / name, "somebody else's");
    }
    EXPECT_TRUE(has(message_of<IoError>([&] { writer->commit(); }),
                    {dir_ / "a.h5", "removed or replaced", "intact"}));
    EXPECT_EQ(get_file(dir_ / "a.h5"), "what was there");
  }
}

TEST_F(ReplacementTest, LinksInTheFolderLeadNobodyAstray) {
  put_file(dir_ / "victim", "precious");
  fs::create_symlink(dir_ / "victim", dir_ / ".a.h5.partial");
  // Somebody puts links where hidden files have been seen, all the time.
  std::atomic<bool> stop = false;
  std::thread attacker([&] {
    while (!stop) {
      std::error_code ignored;
      for (fs::directory_iterator entry(dir_.string(), ignored), end; entry != end;
           entry.increment(ignored)) {
        const std::string name = entry->path().filename().string();
        if (!name.starts_with(".a.h5.") || entry->is_symlink(ignored)) continue;
        const fs::path bait = dir_ / ".bait";
        fs::create_symlink(dir_ / "victim", bait, ignored);
        fs::rename(bait, entry->path(), ignored);
      }
    }
  });
  int refused = 0;
  for (int i = 0; i < 50 || (refused == 0 && i < 5000); ++i) {
    try {
      auto writer = create_hdf5(dir_ / "a.h5", {}, datasets_);
      write_all(*writer, datasets_);
      writer->commit();
      EXPECT_FALSE(fs::is_symlink(dir_ / "a.h5"));
    } catch (const IoError& error) {
      ++refused;
    }
  }
  stop = true;
  attacker.join();
  EXPECT_EQ(get_file(dir_ / "victim"), "precious");
  EXPECT_GT(refused, 0);
}

TEST_F(ReplacementTest, SpaceIsLookedForWhereTheFolderWillBe) {
  constexpr std::int64_t kTooMuch = std::int64_t{1} << 60;
  const std::string path = dir_ / "absent/folder/a.h5";
  EXPECT_TRUE(has(message_of<IoError>([&] { require_space(path, kTooMuch); }),
                  {path, "No space left on device", "free some space"}));
  EXPECT_NO_THROW(require_space(path, 1));
  EXPECT_NO_THROW(require_space("absent/a.h5", 1));
  EXPECT_FALSE(fs::exists(dir_ / "absent"));
}

TEST_F(ReplacementTest, WhatIsNoFileKeepsItsName) {
  for (const bool links : {true, false}) {
    if (!links) failing = {{"link", {0, EPERM, true}}};
    const auto refusal = [&](const std::function<void()>& make) {
      // Somebody makes it while the new file is being written.
      PartialFile file(dir_ / "a.h5");
      make();
      std::string message = message_of<IoError>([&] { file.place(); });
      // Nor may it be there before.
      EXPECT_EQ(message_of<IoError>([&] { const PartialFile again(dir_ / "a.h5"); }), message);
      return message;
    };
    const auto make_folder = [&] {
      fs::create_directory(dir_ / "a.h5");
      put_file(dir_ / "a.h5/inside", "precious");
    };
    EXPECT_TRUE(has(refusal(make_folder), {"a.h5: Is a directory"}));
    EXPECT_EQ(get_file(dir_ / "a.h5/inside"), "precious");
    fs::remove_all(dir_ / "a.h5");
    EXPECT_TRUE(has(refusal([&] { ASSERT_EQ(::mkfifo((dir_ / "a.h5").c_str(), 0600), 0); }),
                    {"a.h5", "is no file", "remove it"}));
    EXPECT_TRUE(fs::is_fifo(dir_ / "a.h5"));
    fs::remove(dir_ / "a.h5");
    EXPECT_TRUE(names_in(dir_.string()).empty());
  }
}

/// Somebody else's file comes before a call of the system, whichever it is.
class FileOfOthers : public ReplacementTest {
 protected:
  struct Case {
    bool had_old = false;
    bool in_place = false;  ///< it is written into what is there
    bool links = true;
    bool plain = false;
  };

  static void come(const std::string& path, bool in_place) {
    if (in_place) return put_file(path, kText);
    put_file(path + "-new", kText);
    ASSERT_EQ(::syscall(SYS_renameat, AT_FDCWD, (path + "-new").c_str(), AT_FDCWD, path.c_str()), 0);
  }

  /// Lets it come before every call that `replace` makes, one after the other, but those before which the
  /// file system lets nobody look. Returns how often `replace` refused.
  int refusals(const Case& what, const std::function<void(const std::string&)>& replace) {
    int refused = 0;
    const std::string path = dir_ / "folder/a.h5";
    for (int number = 0;; ++number) {
      fs::remove_all(dir_ / "folder");
      fs::create_directory(dir_ / "folder");
      if (what.had_old) put_file(path, kOldText);
      bool came = false;
      bool blind = false;
      int counted = 0;
      failing = {};
      if (!what.links) failing = {{"link", {0, EPERM, true}}};
      plain = what.plain;
      meanwhile = [&](std::string_view call) {
        if (counted++ != number) return;
        came = true;
        blind = what.plain && call == "rename";
        come(path, what.in_place);
      };
      std::string message;
      try {
        replace(path);
      } catch (const IoError& error) {
        message = error.what();
        ++refused;
      }
      meanwhile = nullptr;
      if (!came) return refused;
      if (blind) continue;
      EXPECT_EQ(get_file(path), kText) << number << message;
      EXPECT_TRUE(message.empty() || has(message, {path})) << message;
      // What it came to replace is lost by its own doing, or still there.
      if (const auto old = message.find(", and what was there is "); old != std::string::npos) {
        const std::size_t at = message.find('/', old);
        EXPECT_EQ(get_file(message.substr(at, message.find(';', at) - at)), kOldText);
      }
    }
  }

  static constexpr std::string_view kText = "somebody else's";
  static constexpr std::string_view kOldText = "what was there";
};

TEST_F(FileOfOthers, IsNeverReplaced) {
  quick = true;
  for (const bool had_old : {false, true}) {
    for (const bool in_place : {false, true}) {
      for (const bool links : {false, true}) {
        for (const bool without : {false, true}) {
          // Neither links nor such renames: nothing can be promised.
          if (!links && without) continue;
          EXPECT_GT(refusals({had_old, in_place, links, without},
                             [&](const std::string& path) {
                               PartialFile file(path);
                               Replacement* all = &file;
                               replace_together({&all, 1});
                             }),
                    2)
              << had_old << in_place << links << without;
        }
      }
    }
  }
}

TEST_F(FileOfOthers, IsNeverRemoved) {
  quick = true;
  for (const bool in_place : {false, true}) {
    for (const bool without : {false, true}) {
      EXPECT_GT(refusals({true, in_place, true, without},
                         [&](const std::string& path) {
                           Removal removal(path, fresh_id());
                           Replacement* all = &removal;
                           replace_together({&all, 1});
                         }),
                0);
    }
  }
}

TEST_F(FileOfOthers, IsNoneOfSeveralThatAreReplacedTogether) {
  put(1);
  const auto old = folder_contents(folder_);
  const std::string path = folder_ + "/model-00002-of-00002.safetensors";
  ASSERT_TRUE(fs::exists(path));
  auto writer = create_safetensors(folder_, "{}", datasets_, kSmallFiles, 2);
  write_all(*writer, datasets_);
  come(path, false);
  EXPECT_TRUE(has(message_of<IoError>([&] { writer->commit(); }), {path, "stays"}));
  writer.reset();
  auto expected = old;
  expected[fs::path(path).filename().string()] = kText;
  EXPECT_TRUE(folder_contents(folder_) == expected);
}

TEST_F(FileOfOthers, IsNotRemovedWithAnEarlierCheckpoint) {
  for (const char* name : {"model.safetensors.index.json", "model-00001-of-00009.safetensors"}) {
    fs::remove_all(folder_);
    auto writer = create_safetensors(folder_, "{}", datasets_, 1 << 20, 2);
    write_all(*writer, datasets_);
    come(folder_ + "/" + name, false);
    EXPECT_TRUE(has(message_of<IoError>([&] { writer->commit(); }), {folder_ + "/" + name}));
    writer.reset();
    EXPECT_EQ(folder_contents(folder_), (std::map<std::string, std::string>{{name, std::string(kText)}}));
  }
}

TEST_F(FileOfOthers, IsNotReplacedWhereItCameBeforeItWasLookedAt) {
  // Checks of commands come earlier: the writer's own is the one that counts.
  come(dir_ / "a.h5", false);
  const Attributes shard{{"kind", std::string("shard")}};
  EXPECT_TRUE(has(message_of<IoError>([&] { create_hdf5(dir_ / "a.h5", shard, datasets_); }),
                  {dir_ / "a.h5", "does not say that this program wrote it"}));
  come(dir_ / "a.safetensors", false);
  EXPECT_TRUE(
      has(message_of<IoError>([&] { create_safetensors_file(dir_ / "a.safetensors", shard, datasets_); }),
          {dir_ / "a.safetensors", "does not say that this program wrote it"}));
  EXPECT_EQ(names_in(dir_.string()).size(), 2U);
}

TEST_F(ReplacementTest, ANewFileHasThePermissionsOfTheOld) {
  const auto mode_of = [](const std::string& path) {
    return static_cast<unsigned>(fs::status(path).permissions());
  };
  const mode_t mask = ::umask(022);
  for (const unsigned mode : {0600U, 0444U, 0664U, 0U}) {
    put_file(dir_ / "a.h5", "what was there");
    ASSERT_EQ(::chmod((dir_ / "a.h5").c_str(), mode), 0);
    PartialFile file(dir_ / "a.h5");
    // Nor may anybody read it before.
    EXPECT_EQ(mode_of(file.partial_path()) & 077U & ~mode, 0U);
    Replacement* all = &file;
    replace_together({&all, 1});
    EXPECT_EQ(mode_of(dir_ / "a.h5"), mode);
  }
  PartialFile file(dir_ / "b.h5");
  Replacement* all = &file;
  replace_together({&all, 1});
  EXPECT_EQ(mode_of(dir_ / "b.h5"), 0644U);
  ::umask(mask);
}

TEST_F(ReplacementTest, WhatToDoFollowsFromWhatIsRefused) {
  const auto refusal = [](const std::string& path) {
    return message_of<SystemRefusal>([&] { const PartialFile file(path); });
  };
  EXPECT_TRUE(has(refusal(dir_ / "absent/a.h5"), {"absent/a.h5", "No such file", "check its folder"}));
  EXPECT_TRUE(has(refusal(dir_ / std::string(256, 'x')), {"File name too long", "shorter name"}));
  ASSERT_EQ(::chmod(dir_.string().c_str(), 0555), 0);
  const test_support::OtherUser other;
  EXPECT_TRUE(has(refusal(dir_ / "a.h5"), {"Permission denied", "folder that can be written"}));
}

TEST_F(ReplacementTest, WhereverAProcessDiesTheNextFindsOneVersionWhole) {
  constexpr std::int64_t kOneFile = 1 << 20;
  quick = true;
  const LeftOvers left_overs(
      folder_, [](std::string_view name) { return is_model_file(name) || name == "config.json"; },
      [](const fs::path&) { return true; });
  const auto write = [&](std::int64_t max_file_bytes, std::int64_t version) {
    auto writer =
        create_safetensors(folder_, "{}", datasets_, max_file_bytes, version, std::to_string(version));
    write_all(*writer, datasets_);
    writer->commit();
  };
  const auto contents_of = [&](std::int64_t max_file_bytes, std::int64_t version) {
    fs::remove_all(folder_);
    write(max_file_bytes, version);
    return folder_contents(folder_);
  };
  for (const auto& [before, after] : {std::pair(kSmallFiles, kOneFile), std::pair(kOneFile, kSmallFiles),
                                      std::pair(kSmallFiles, kSmallFiles)}) {
    const auto fresh = contents_of(after, 2);
    const auto old = contents_of(before, 1);
    for (const char* call : {"rename", "link", "unlink", "fsync"}) {
      for (const auto& [does_it, without] : kBoth) {
        plain = without;
        bool undone = false;
        int died = 1;
        for (int number = 0; died == 1; ++number) {
          fs::remove_all(folder_);
          write(before, 1);
          const pid_t child = ::fork();
          ASSERT_GE(child, 0);
          if (child == 0) {
            failing = {{call, {number, EIO, false, does_it, true}}};
            write(after, 2);
            ::_exit(0);
          }
          int status = -1;
          ::waitpid(child, &status, 0);
          ASSERT_TRUE(WIFEXITED(status));
          died = WEXITSTATUS(status);
          left_overs.put_back(left_overs.unfinished());
          left_overs.remove_unfinished();
          const auto left = folder_contents(folder_);
          undone = undone || left == old;
          ASSERT_TRUE(left == old || left == fresh) << call << " " << number << " " << does_it;
        }
        // What is removed is so when all is in place.
        EXPECT_TRUE(undone || call == std::string_view("unlink")) << call;
      }
    }
  }
}

TEST_F(ReplacementTest, AProcessThatEndsAmidIt) {
  put_file(dir_ / "a.h5", "what was there");
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const OutputLock lock(folder_lock(dir_.string()), "--sink", "sync");
    PartialFile replaced(dir_ / "a.h5");
    PartialFile made(dir_ / "b.h5");
    const PartialFile unfinished(dir_ / "c.h5");
    replaced.place();
    made.place();
    undo_unfinished();
    ::_exit(0);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(get_file(dir_ / "a.h5"), "what was there");
  EXPECT_FALSE(fs::exists(dir_ / "b.h5"));
  // Of those that took their names the word stays that they broke off: others may have to hear it.
  const LeftOvers left_overs(
      dir_.string(), [](std::string_view name) { return name.ends_with(".h5"); },
      [](const fs::path&) { return true; });
  EXPECT_EQ(left_overs.unfinished().size(), 2U);
  left_overs.put_back(left_overs.unfinished());
  left_overs.remove_unfinished();
  EXPECT_EQ(folder_contents(dir_.string()), (std::map<std::string, std::string>{{"a.h5", "what was there"}}));
}

}  // namespace
}  // namespace weightcast
