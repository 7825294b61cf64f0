// Hidden names, and what broken runs leave under them.

#include "storage/left_overs.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.hpp"
#include "storage/hidden_names.hpp"
#include "storage/journal.hpp"
#include "storage/model_files.hpp"
#include "storage/output_lock.hpp"
#include "storage/partial_file.hpp"
#include "storage/rank_file.hpp"
#include "storage/removal.hpp"
#include "storage/trainer_shard.hpp"
#include "storage_files.hpp"
#include "support/files.hpp"

namespace weightcast {
namespace {

namespace fs = std::filesystem;
using namespace testing_files;
using test_support::folder_contents;
using Contents = std::map<std::string, std::string>;

class LeftOversTest : public ::testing::Test {
 protected:
  static bool ends_in_h5(std::string_view name) { return name.ends_with(".h5"); }
  static bool is_own(const fs::path& path) { return get_file(path.string()) != kOfOthers; }
  static constexpr std::string_view kOfOthers = "somebody else's";

  void expect_contents(const Contents& contents) const {
    EXPECT_EQ(folder_contents(dir_.string()), contents);
  }

  /// Replaces `path` as a whole.
  static void replace(const std::string& path, std::string_view text) {
    PartialFile file(path);
    file.write_at(0, std::as_bytes(std::span(text)));
    Replacement* all = &file;
    replace_together({&all, 1});
  }

  /// All that a job does before it writes. `elsewhere` broke off on other nodes.
  static void clear(const LeftOvers& left_overs, std::set<std::string> elsewhere = {}) {
    elsewhere.merge(left_overs.unfinished());
    left_overs.put_back(elsewhere);
    left_overs.remove_unfinished();
  }

  /// Runs `action` in a process that dies at its end without any clearing up.
  static void die_after(const std::function<void()>& action) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      action();
      ::_exit(0);
    }
    ::waitpid(child, nullptr, 0);
  }

  /// Half a new file, as a process leaves it that was killed while it wrote: with a journal that tells of it.
  static void put_half(const std::string& path, const std::string& id) {
    const std::string partial = hidden_path(path, id, kPartial);
    put_file(partial, "half a file");
    struct stat there {};
    ASSERT_EQ(::lstat(partial.c_str(), &there), 0);
    begin_journal(hidden_path(path, id, kJournal), there.st_ino);
  }

  /// A new file for `name`, which says `version 2`.
  std::unique_ptr<PartialFile> make_new(const std::string& name, const std::string& id) const {
    constexpr std::string_view kText = "version 2";
    auto file = std::make_unique<PartialFile>(dir_ / name, id);
    file->write_at(0, std::as_bytes(std::span(kText)));
    return file;
  }

  /// Three files of version 2 take the places of two of version 1, another one of version 1 goes; the process
  /// dies after `placed` of the four.
  void break_off_after(std::size_t placed) const {
    for (const char* name : {"a.h5", "b.h5", "d.h5"}) put_file(dir_ / name, "version 1");
    die_after([&] {
      const std::string id = fresh_id();
      const auto a = make_new("a.h5", id);
      const auto b = make_new("b.h5", id);
      const auto c = make_new("c.h5", id);
      Removal d(dir_ / "d.h5", id);
      const std::vector<Replacement*> all{a.get(), c.get(), &d, b.get()};
      prepare_together(all);
      for (std::size_t i = 0; i < placed; ++i) all[i]->place();
      ::_exit(0);
    });
  }

  TempDir dir_;
  LeftOvers left_overs_{dir_.string(), &ends_in_h5, &is_own};
};

TEST_F(LeftOversTest, HiddenNamesAreKnown) {
  const std::string id = fresh_id();
  EXPECT_NE(id, fresh_id());
  const auto expect_hidden = [](const std::string& name, std::string_view stem, std::string_view kind,
                                std::string_view of = "") {
    const HiddenName hidden = parse_hidden(name);
    EXPECT_EQ(hidden.id, of);
    EXPECT_EQ(hidden.stem, stem);
    EXPECT_EQ(hidden.kind, kind);
  };
  expect_hidden(".rank-0.h5." + id + ".partial", "rank-0.h5", kPartial, id);
  expect_hidden(".rank-0.h5." + id + ".old", "rank-0.h5", kOld, id);
  for (const std::string name : {"rank-0.h5", ".rank-0.h5.old", ".rank-0.h5.partial", ".0123456789abcdef.old",
                                 "x.partial", ".h5", ".", ".old"}) {
    expect_hidden(name, name, "");
  }
  expect_hidden(fs::path(hidden_path("/a/b.h5", id, kPartial)).filename().string(), "b.h5", kPartial, id);
}

TEST_F(LeftOversTest, NamesThatAreAsLongAsTheyMayBeCanBeReplaced) {
  for (const std::size_t length : {228, 229, 230, 249, 250, 255}) {
    // Characters of two bytes, so that some cut goes through one.
    std::string name(length % 2, 'x');
    while (name.size() < length) name += "é";
    for (const std::string_view kind : {kPartial, kOld}) {
      const std::string hidden = fs::path(hidden_path(name, fresh_id(), kind)).filename().string();
      EXPECT_LE(hidden.size(), 255U);
      EXPECT_EQ(parse_hidden(hidden).stem, hidden_stem(name));
    }
    if (length > 229) {
      std::string kept = hidden_stem(name);
      kept.resize(kept.rfind('~'));
      EXPECT_TRUE(name.starts_with(kept));
      EXPECT_EQ((kept.size() - length % 2) % 2, 0U);
    }
    const std::string path = dir_ / name;
    const OutputLock lock(file_lock(path), "--output", "convert");
    EXPECT_TRUE(lock.held());
    const LeftOvers left_overs(path, &is_own);
    replace(path, "the old one");
    // As it lies when a run has broken off between two renames.
    fs::rename(path, hidden_path(path, fresh_id(), kOld));
    put_half(path, fresh_id());
    clear(left_overs);
    EXPECT_EQ(get_file(path), "the old one");
    replace(path, "the new one");
    EXPECT_EQ(names_in(dir_.string()).size(), 2U);  // with the lock
    fs::remove(path);
  }
  // Names with one beginning are told apart.
  EXPECT_NE(hidden_stem(std::string(250, 'x') + "1"), hidden_stem(std::string(250, 'x') + "2"));
}

TEST_F(LeftOversTest, OldFilesStayUntilNewOnesAreInPlace) {
  put_file(dir_ / "a.h5", "the new one");
  put_half(dir_ / "a.h5", "2123456789abcdef");
  put_half(dir_ / "a.h5", "1123456789abcdef");
  put_file(dir_ / ".a.h5.0123456789abcdef.old", "the old one, replaced");
  put_file(dir_ / ".b.h5.0123456789abcdef.old", "the old one, moved away");
  put_file(dir_ / ".c.txt.partial", "somebody else's");
  fs::create_directory(dir_ / ".d.h5.1123456789abcdef.partial");
  Contents after{{"a.h5", "the new one"},
                 {".a.h5.0123456789abcdef.old", "the old one, replaced"},
                 {"b.h5", "the old one, moved away"},
                 {".c.txt.partial", "somebody else's"}};
  clear(left_overs_);
  expect_contents(after);
  after.erase(".a.h5.0123456789abcdef.old");
  left_overs_.clear_old();
  expect_contents(after);
  const LeftOvers nowhere(dir_ / "absent", &ends_in_h5, &is_own);
  clear(nowhere);
  nowhere.clear_old();
}

TEST_F(LeftOversTest, WhatOthersHaveUnderHiddenNamesStays) {
  const std::string id = "0123456789abcdef";
  Contents mine{{".a.h5.partial", "somebody else's"},
                {".a.h5." + id + ".old", "somebody else's"},
                {".b.h5." + id + ".old", "somebody else's"},
                {".b.h5." + id + ".partial", "somebody else's"},
                {".b.h5." + id + ".journal", "somebody else's"},
                {".c.h5." + id + ".partial", ""},
                {".d.h5." + id + ".journal", ""},
                {"b.h5", "version 1"}};
  for (const auto& [name, text] : mine) put_file(dir_ / name, text);
  clear(left_overs_);
  left_overs_.clear_old();
  expect_contents(mine);
  // Nor as part of a replacement that broke off, elsewhere.
  clear(left_overs_, {id});
  left_overs_.clear_old();
  expect_contents(mine);
  // What cannot be read may be anybody's.
  const LeftOvers unreadable(dir_.string(), &ends_in_h5,
                             [](const fs::path& path) -> bool { throw IoError(path.string()); });
  clear(unreadable, {id});
  unreadable.clear_old();
  expect_contents(mine);
}

TEST_F(LeftOversTest, OfSeveralOldFilesTheNewestGetsTheNameBack) {
  using namespace std::chrono_literals;
  put_file(dir_ / ".a.h5.1123456789abcdef.old", "version 1");
  put_file(dir_ / ".a.h5.0123456789abcdef.old", "version 2");
  put_file(dir_ / ".a.h5.2123456789abcdef.old", "version 0");
  const auto now = fs::file_time_type::clock::now();
  fs::last_write_time(dir_ / ".a.h5.0123456789abcdef.old", now);
  fs::last_write_time(dir_ / ".a.h5.1123456789abcdef.old", now - 1h);
  fs::last_write_time(dir_ / ".a.h5.2123456789abcdef.old", now - 2h);
  clear(left_overs_);
  EXPECT_EQ(get_file(dir_ / "a.h5"), "version 2");
  EXPECT_EQ(names_in(dir_.string()).size(), 3U);
}

TEST_F(LeftOversTest, WhatStaysIsNamedInOneLine) {
  EXPECT_EQ(left_overs_.strangers(), "");
  put_half(dir_ / "a.h5", "0123456789abcdef");
  put_file(dir_ / ".a.h5.1123456789abcdef.old", "version 1");
  EXPECT_EQ(left_overs_.strangers(), "");
  put_file(dir_ / ".b.h5.0123456789abcdef.partial", "somebody else's");
  EXPECT_TRUE(has(left_overs_.strangers(), {dir_ / ".b.h5.0123456789abcdef.partial stays:", "remove it"}));
  put_file(dir_ / ".a.h5.2123456789abcdef.old", "somebody else's");
  EXPECT_TRUE(has(left_overs_.strangers(), {dir_ / ".a.h5.2123456789abcdef.old (and 1 more) stays:"}));
}

TEST_F(LeftOversTest, AJournalProvesItselfAndWhatItNames) {
  put_file(dir_ / "a.h5", "version 1");
  die_after([&] {
    const auto file = make_new("a.h5", "0123456789abcdef");
    file->prepare();
    ::_exit(0);
  });
  const auto hidden = [&](const char* name, std::string_view kind) {
    return hidden_path(dir_ / name, "0123456789abcdef", kind);
  };
  const auto journal = read_journal(hidden("a.h5", kJournal));
  ASSERT_TRUE(journal && journal->entry.fresh && journal->entry.old);
  // A copy under another name tells of nothing, nor one behind a link.
  fs::copy_file(hidden("a.h5", kJournal), hidden("b.h5", kJournal));
  fs::create_symlink(hidden("a.h5", kJournal), hidden("c.h5", kJournal));
  EXPECT_FALSE(read_journal(hidden("b.h5", kJournal)) || read_journal(hidden("c.h5", kJournal)));
  // Somebody else's files under the names of a real one's stay.
  fs::remove(hidden("a.h5", kPartial));
  put_file(dir_ / "new", kOfOthers);
  fs::rename(dir_ / "new", hidden("a.h5", kPartial));
  put_file(hidden("a.h5", kOld), kOfOthers);
  fs::remove(dir_ / "a.h5");
  clear(left_overs_, {"0123456789abcdef"});
  left_overs_.clear_old();
  EXPECT_FALSE(fs::exists(dir_ / "a.h5"));
  EXPECT_EQ(get_file(hidden("a.h5", kPartial)), kOfOthers);
  EXPECT_EQ(get_file(hidden("a.h5", kOld)), kOfOthers);
}

TEST_F(LeftOversTest, AReplacementThatBrokeOffIsUndoneWhole) {
  const std::string broken = "0123456789abcdef";
  const auto hidden = [&](const char* name, const std::string& id, std::string_view kind) {
    return hidden_path(dir_ / name, id, kind);
  };
  // Of one replacement; the old files of the one before have stayed, too.
  put_file(dir_ / "a.h5", "version 3");
  put_file(hidden("a.h5", broken, kOld), "version 2");
  put_file(hidden("a.h5", "1123456789abcdef", kOld), "version 1");
  put_file(dir_ / "b.h5", "version 2");
  fs::create_hard_link(dir_ / "b.h5", hidden("b.h5", broken, kOld));
  // Its old file cannot get its name back: a folder has it.
  fs::create_directories(dir_ / "c.h5/full");
  put_file(hidden("c.h5", broken, kOld), "version 2");
  EXPECT_TRUE(has(message_of<IoError>([&] { clear(left_overs_, {broken}); }),
                  {dir_ / "c.h5", "rename it, or remove it"}));
  EXPECT_EQ(get_file(dir_ / "a.h5"), "version 2");
  EXPECT_EQ(get_file(dir_ / "b.h5"), "version 2");
  EXPECT_TRUE(fs::exists(hidden("a.h5", "1123456789abcdef", kOld)));
  fs::remove_all(dir_ / "c.h5");
  clear(left_overs_, {broken});
  EXPECT_EQ(get_file(dir_ / "c.h5"), "version 2");
  EXPECT_EQ(names_in(dir_.string()),
            (std::vector<std::string>{".a.h5.1123456789abcdef.old", "a.h5", "b.h5", "c.h5"}));
}

TEST_F(LeftOversTest, AReplacementThatBrokeOffOnAnotherNodeIsUndone) {
  const std::string broken = "0123456789abcdef";
  put_file(dir_ / "a.h5", "version 2");
  put_file(hidden_path(dir_ / "a.h5", broken, kOld), "version 1");
  EXPECT_TRUE(left_overs_.unfinished().empty());
  clear(left_overs_);
  EXPECT_EQ(get_file(dir_ / "a.h5"), "version 2");
  clear(left_overs_, {broken});
  EXPECT_EQ(get_file(dir_ / "a.h5"), "version 1");
  put_half(dir_ / "a.h5", broken);
  EXPECT_EQ(left_overs_.unfinished(), (std::set<std::string>{broken}));
  clear(left_overs_);
  EXPECT_EQ(names_in(dir_.string()), std::vector<std::string>{"a.h5"});
}

TEST_F(LeftOversTest, WhatBrokeOffIsUndoneWithFilesThatWereNewAndThoseThatWent) {
  const Contents before{{"a.h5", "version 1"}, {"b.h5", "version 1"}, {"d.h5", "version 1"}};
  for (const std::size_t placed : {0, 1, 2, 3}) {
    break_off_after(placed);
    clear(left_overs_);
    EXPECT_EQ(folder_contents(dir_.string()), before) << placed;
  }
}

TEST_F(LeftOversTest, WhatWasPlacedWholeIsBroughtToItsEnd) {
  break_off_after(4);
  clear(left_overs_);
  expect_contents({{"a.h5", "version 2"}, {"b.h5", "version 2"}, {"c.h5", "version 2"}});
}

TEST_F(LeftOversTest, FilesThatCameAfterABrokenOneStay) {
  break_off_after(3);
  // Written into the files that are there, and put in their place.
  put_file(dir_ / "a.h5", "version 3");
  put_file(dir_ / "b.h5", "version 3");
  fs::remove(dir_ / "c.h5");
  put_file(dir_ / "c.h5", "version 3");
  put_file(dir_ / "d.h5", "version 3");
  clear(left_overs_);
  for (const char* name : {"a.h5", "b.h5", "c.h5", "d.h5"}) EXPECT_EQ(get_file(dir_ / name), "version 3");
  left_overs_.clear_old();
  EXPECT_EQ(names_in(dir_.string()).size(), 4U);
}

TEST_F(LeftOversTest, ALateUndoTouchesNothingOfTheNextJob) {
  PartialFile late(dir_ / "a.h5");
  late.place();
  const PartialFile never(dir_ / "b.h5", "0123456789abcdef");
  clear(left_overs_, {fs::path(late.partial_path()).filename().string().substr(6, 16)});
  replace(dir_ / "a.h5", "the next job's");
  EXPECT_TRUE(has(message_of<NotPutBack>([&] { late.take_back(); }), {dir_ / "a.h5", "stays"}));
  expect_contents({{"a.h5", "the next job's"}});
}

TEST_F(LeftOversTest, AJobThatFailsAfterABrokenOneLosesNothing) {
  const std::vector<std::string> names{"a.h5", "b.h5", "c.h5", "d.h5"};
  for (const std::string& name : names) put_file(dir_ / name, "version 1");
  // The node dies after two of four renames.
  die_after([&] {
    std::vector<std::unique_ptr<PartialFile>> files;
    const std::string id = fresh_id();
    for (const std::string& name : names) files.push_back(std::make_unique<PartialFile>(dir_ / name, id));
    files[0]->place();
    files[1]->place();
    ::_exit(0);
  });
  const auto count = [&](std::string_view content) {
    const auto contents = folder_contents(dir_.string());
    return std::ranges::count_if(contents, [&](const auto& file) { return file.second == content; });
  };
  clear(left_overs_);
  EXPECT_EQ(count("version 1"), 4);
  EXPECT_EQ(names_in(dir_.string()), names);
  for (const std::string& name : names) replace(dir_ / name, "version 3");
  left_overs_.clear_old();
  EXPECT_EQ(names_in(dir_.string()), names);
  EXPECT_EQ(count("version 3"), 4);
}

TEST_F(LeftOversTest, WhatOthersCallModelStaysTheirs) {
  for (const char* name :
       {"model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"}) {
    EXPECT_TRUE(is_model_file(name)) << name;
  }
  for (const char* name : {"model.py", "model", "models.safetensors", "model-1-of-2.safetensors",
                           "model-00001-of-00002.safetensors.txt", "config.json"}) {
    EXPECT_FALSE(is_model_file(name)) << name;
  }
}

TEST_F(LeftOversTest, TrainersShardsOfOthersStay) {
  const std::string folder = dir_.string();
  const TrainerShardLabels labels{"a layout", 1, fresh_id()};
  for (const bool hdf5 : {false, true}) {
    for (const std::int64_t rank : {0, 1}) create_trainer_shard(folder, rank, hdf5, labels, {})->commit();
  }
  const std::vector<std::string> foreign{dir_ / "trainer-2.h5", dir_ / "trainer-3.safetensors",
                                         dir_ / "trainer-4.h5", dir_ / "trainer-5.h5",
                                         dir_ / "trainer-6.safetensors"};
  put_file(foreign[0], "a text");
  put_file(foreign[1], "a text");
  fs::create_directory(foreign[2]);
  create_hdf5(foreign[3], {{"kind", std::string("checkpoint")}}, {})->commit();
  put_file(foreign[4], safetensors_bytes("{}", 0));
  OtherTrainerShards others = other_trainer_shards(folder, 1, true);
  for (std::vector<std::string>* paths : {&others.own, &others.foreign}) std::ranges::sort(*paths);
  EXPECT_EQ(others.foreign, foreign);
  EXPECT_EQ(others.own, (std::vector<std::string>{dir_ / "trainer-0.safetensors", dir_ / "trainer-1.h5",
                                                  dir_ / "trainer-1.safetensors"}));
}

TEST_F(LeftOversTest, NamesOfShards) {
  const RankFile hdf5{0, FileFormat::kHdf5};
  const RankFile safetensors{1234, FileFormat::kSafetensors};
  EXPECT_EQ(rank_file_name(kShardStem, hdf5), "rank-0.h5");
  EXPECT_EQ(rank_file_name(kShardStem, safetensors), "rank-1234.safetensors");
  for (const RankFile& file : {hdf5, safetensors}) {
    EXPECT_EQ(parse_rank_file(kShardStem, rank_file_name(kShardStem, file)), file);
    EXPECT_FALSE(parse_rank_file(kTrainerStem, rank_file_name(kShardStem, file)).has_value());
  }
  for (const char* name : {"rank-.h5", "rank--1.h5", "rank-01.h5", "rank-1.h5x", "rank-1", "Rank-1.h5", "",
                           "rank-99999999999999999999.h5", "rank-.safetensors", "rank-1.safetensors.h5",
                           "rank-07.safetensors", "rank-1.h5.safetensors"}) {
    EXPECT_FALSE(parse_rank_file(kShardStem, name).has_value()) << name;
  }
}

}  // namespace
}  // namespace weightcast
