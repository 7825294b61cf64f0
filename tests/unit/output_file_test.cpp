// What a report may replace, and what stays whatever happens.

#include "launch/files/output_file.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <thread>
#include <utility>

#include "control/signals.hpp"
#include "core/error.hpp"
#include "report/svg.hpp"
#include "storage/partial_file.hpp"
#include "storage_files.hpp"
#include "support/other_user.hpp"

namespace {

int rename_error = 0;  ///< what the next rename fails with

}  // namespace

// In place of the C library's.
extern "C" int rename(const char* from, const char* to) noexcept {
  if (rename_error == 0) return static_cast<int>(::syscall(SYS_renameat, AT_FDCWD, from, AT_FDCWD, to));
  errno = std::exchange(rename_error, 0);
  return -1;
}
extern "C" int renameat2(int, const char* from, int, const char* to, unsigned flags) noexcept {
  if (rename_error == 0) {
    return static_cast<int>(::syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, flags));
  }
  errno = std::exchange(rename_error, 0);
  return -1;
}

namespace weightcast {
namespace {

namespace fs = std::filesystem;
using namespace testing_files;

constexpr const char* kFirst = "{\n  \"weightcast\": \"weightcast 0.1.0\",\n  \"command\": \"sync\"\n}\n";

class OutputFileTest : public ::testing::Test {
 protected:
  OutputFile begin(const std::string& path) const { return {"json", path, kFirst}; }

  /// What is there is refused and stays as it is.
  void expect_refused(const std::string& text) const {
    const std::string path = dir_ / "file";
    put_file(path, text);
    EXPECT_TRUE(
        has(message_of<UsageError>([&] { begin(path); }), {"--json " + path, "no report", "remove it"}))
        << text.substr(0, 60);
    EXPECT_EQ(get_file(path), text);
    EXPECT_EQ(names_in(dir_.string()), std::vector<std::string>{"file"});
  }

  TempDir dir_;
};

TEST_F(OutputFileTest, TakesWhatIsEmptyOrOfItsKind) {
  const std::string path = dir_ / "file";
  const std::string events = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[";
  const std::string name =
      "{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":0,\"tid\":0,\"args\":{\"name\":\"rank 0 ";
  const std::vector<std::pair<std::string, std::vector<std::string>>> kinds{
      {"a report",
       {kFirst, "{\n  \"weightcast\": \"weightcast 0.1.0 · Open MPI 4.1.4\",\n  \"command\": \"bench\",\n",
        "{\n  \"weightcast\": \"plan\",\n  \"hash\": \"00\"\n}\n",
        "{\n  \"weightcast\": \"inspect\",\n  \"path\": \"a\"\n}\n",
        "{\n  \"weightcast\": \"verify\",\n  \"status\": \"done\"\n}\n"}},
      {"a trace",
       {events + "]}\n", events + name + "trainer\"}}]}\n", events + name + "inference 0\"}}]}\n"}},
      {"a picture", {std::string(Svg::kBeginning) + ">"}},
      {"a file of hosts", {"# ranks of a weightcast job with live:run\nnode-1\n"}},
      {"an expert map", {"{\n  \"expert_map\": 1,\n  \"epoch\": 1\n}\n"}}};
  for (const auto& [kind, texts] : kinds) {
    const std::string& first = texts.front();
    for (const auto& [other, old_texts] : kinds) {
      for (const std::string& old : old_texts) {
        put_file(path, old);
        if (other != kind) {
          EXPECT_TRUE(has(message_of<UsageError>([&] { OutputFile("json", path, first); }),
                          {"--json " + path, "what is there is " + other, "this is " + kind, "remove it"}));
          EXPECT_EQ(get_file(path), old);
          continue;
        }
        OutputFile file("json", path, first);
        EXPECT_EQ(get_file(path), first);
        file.write("the end");
        EXPECT_EQ(get_file(path), "the end");
        EXPECT_EQ(names_in(dir_.string()).size(), 1U);
      }
    }
  }
  put_file(path, "");
  begin(path).write("the end");
  EXPECT_EQ(get_file(path), "the end");
  fs::remove(path);
  begin(path).write("the end");
  EXPECT_EQ(get_file(path), "the end");
  EXPECT_FALSE(begin_output("json", "", kFirst).has_value());
}

TEST_F(OutputFileTest, ALookChangesNothing) {
  const std::string path = dir_ / "file";
  const auto look = [&](const std::string& at) { OutputFile::look("trace", at, kFirst); };
  look(path);
  EXPECT_TRUE(names_in(dir_.string()).empty());
  put_file(path, kFirst);
  look(path);
  put_file(path, "precious");
  EXPECT_TRUE(has(message_of<UsageError>([&] { look(path); }), {"--trace " + path, "no report"}));
  EXPECT_EQ(get_file(path), "precious");
  EXPECT_TRUE(has(message_of<IoError>([&] { look(dir_ / "absent/t.json"); }), {"absent", "No such file"}));
  EXPECT_TRUE(has(message_of<UsageError>([&] { look(dir_ / "config.json"); }), {"checkpoint's file"}));
  EXPECT_EQ(names_in(dir_.string()), std::vector<std::string>{"file"});
}

TEST_F(OutputFileTest, RefusesEverythingElse) {
  // A safetensors file whose header has 256 bytes begins with a zero.
  std::string safetensors = safetensors_bytes("{}" + std::string(254, ' '), 8);
  ASSERT_EQ(safetensors[0], '\0');
  expect_refused(safetensors);
  expect_refused(std::string(4096, '\0'));
  expect_refused(std::string(1, '\0'));
  for (const char* text :
       {"{", "{\n", "{\n  \"weightcast\"", "{\n  \"weightcast\": \"weightcast \"", "precious", "\n",
        "{\n  \"weightcast\": \"weightcast\"\n}", "{\n  \"weightcast\": {\"a\": 1}\n}",
        "{\n  \"weightcast\": \"weightcast 1\",\n  \"other\": 1\n}",
        "{\"weightcast\": \"plan\", \"hash\": \"\"}", "{\n  \"architectures\": [\"Qwen3ForCausalLM\"]\n}",
        "{\"architectures\": []}", "{\n  \"metadata\": {\"total_size\": 5},\n  \"weight_map\": {}\n}",
        "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[{\"name\":\"mine\"}]}", "{\"displayTimeUnit\":\"ms\"}",
        " {\n  \"weightcast\": \"plan\",\n  \"hash\": \"00\"\n}\n"}) {
    expect_refused(text);
  }
}

TEST_F(OutputFileTest, RefusesWhatIsNoFileAndNamesOfWeights) {
  EXPECT_TRUE(has(message_of<IoError>([&] { begin(dir_.string()); }), {dir_.string(), "Is a directory"}));
  EXPECT_TRUE(
      has(message_of<IoError>([&] { begin(dir_ / "absent/report.json"); }), {"absent", "No such file"}));
  fs::create_symlink(dir_ / "absent", dir_ / "link");
  EXPECT_TRUE(has(message_of<UsageError>([&] { begin(dir_ / "link"); }), {dir_ / "link", "not there"}));
  for (const char* name :
       {"rank-0.h5", "a.hdf5", "model.safetensors", "config.json", "generation_config.json",
        "hf_quant_config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json",
        ".rank-9.h5.0123456789abcdef.old", ".rank-9.h5.0123456789abcdef.partial", ".weightcast.lock",
        ".model.h5.lock", ".x.0123456789abcdef.journal", "tokenizer.json", "tokenizer_config.json",
        "special_tokens_map.json", "vocab.json"}) {
    EXPECT_TRUE(has(message_of<UsageError>([&] { begin(dir_ / name); }),
                    {"--json " + (dir_ / name), "checkpoint's file", "report.json"}));
  }
  EXPECT_EQ(names_in(dir_.string()), std::vector<std::string>{"link"});
  // A link leads from such a name, or to one.
  put_file(dir_ / "report.json", "");
  fs::create_symlink(dir_ / "report.json", dir_ / "config.json");
  put_file(dir_ / "tokenizer.json", "");
  fs::create_symlink(dir_ / "tokenizer.json", dir_ / "other.json");
  for (const char* name : {"config.json", "other.json"}) {
    EXPECT_TRUE(has(message_of<UsageError>([&] { begin(dir_ / name); }), {"checkpoint's file"}));
  }
  for (const char* name : {"report.json", "config", "myconfig.json", "index.json", "tokens.json"}) {
    begin(dir_ / name).write("the end");
    EXPECT_EQ(get_file(dir_ / name), "the end");
  }
}

TEST_F(OutputFileTest, FollowsLinksToReportsOnly) {
  put_file(dir_ / "precious", "precious");
  fs::create_symlink(dir_ / "precious", dir_ / "link");
  EXPECT_TRUE(has(message_of<UsageError>([&] { begin(dir_ / "link"); }), {"no report"}));
  EXPECT_EQ(get_file(dir_ / "precious"), "precious");
  put_file(dir_ / "precious", "");
  begin(dir_ / "link").write("the end");
  EXPECT_EQ(get_file(dir_ / "precious"), "the end");
  EXPECT_TRUE(fs::is_symlink(dir_ / "link"));
}

TEST_F(OutputFileTest, WhatOthersPutThereMeanwhileStays) {
  for (const bool again : {false, true}) {
    OutputFile file = begin(dir_ / "report");
    if (again) file.write(kFirst);
    fs::remove(dir_ / "report");
    put_file(dir_ / "report", "precious");
    message_of<Error>([&] { file.write("the end"); });
    EXPECT_EQ(get_file(dir_ / "report"), "precious");
    fs::remove(dir_ / "report");
    file.write("the end");
    EXPECT_EQ(get_file(dir_ / "report"), "the end");
    fs::remove(dir_ / "report");
  }
}

TEST_F(OutputFileTest, KeepsPermissions) {
  put_file(dir_ / "report", "");
  ASSERT_EQ(::chmod((dir_ / "report").c_str(), 0640), 0);
  begin(dir_ / "report").write("the end");
  EXPECT_EQ(fs::status(dir_ / "report").permissions(), fs::perms(0640));
}

TEST_F(OutputFileTest, AFolderThatCannotBeWrittenLetsAReportBeWrittenInPlace) {
  const std::string folder = dir_ / "folder";
  const std::string path = folder + "/report";
  fs::create_directory(folder);
  put_file(path, kFirst + std::string(1000, ' '));
  put_file(folder + "/precious", "precious");
  put_file(folder + "/closed", "");
  for (const std::string& name : {path, folder + "/precious"}) ASSERT_EQ(::chmod(name.c_str(), 0666), 0);
  ASSERT_EQ(::chmod((folder + "/closed").c_str(), 0444), 0);
  ASSERT_EQ(::chmod(dir_.string().c_str(), 0755), 0);
  ASSERT_EQ(::chmod(folder.c_str(), 0555), 0);
  {
    const test_support::OtherUser other;
    OutputFile file = begin(path);
    EXPECT_EQ(get_file(path), kFirst);
    file.write("the end");
    EXPECT_EQ(get_file(path), "the end");
    EXPECT_TRUE(has(message_of<UsageError>([&] { begin(folder + "/precious"); }), {"no report"}));
    EXPECT_TRUE(has(message_of<IoError>([&] { begin(folder + "/absent"); }),
                    {"absent", "Permission denied", "folder that can be written"}));
    EXPECT_TRUE(has(message_of<IoError>([&] { begin(folder + "/closed"); }),
                    {"closed", "Permission denied", "in place"}));
  }
  EXPECT_EQ(get_file(folder + "/precious"), "precious");
  ASSERT_EQ(::chmod(folder.c_str(), 0755), 0);
}

TEST_F(OutputFileTest, AFileThatCannotBeReplacedIsWrittenInPlace) {
  const std::string path = dir_ / "report";
  for (const int error : {EACCES, EPERM, EROFS, EBUSY}) {
    put_file(path, "");
    const auto inode = [&] {
      struct stat there {};
      EXPECT_EQ(::stat(path.c_str(), &there), 0);
      return there.st_ino;
    };
    const auto before = inode();
    rename_error = error;
    OutputFile file = begin(path);
    rename_error = error;
    file.write("the end");
    EXPECT_EQ(get_file(path), "the end");
    EXPECT_EQ(inode(), before);
    EXPECT_EQ(names_in(dir_.string()), std::vector<std::string>{"report"});
    // What somebody has put there meanwhile stays, in place or not.
    put_file(path, "precious");
    rename_error = error;
    EXPECT_TRUE(has(message_of<UsageError>([&] { file.write("the end"); }), {"no report"}));
    EXPECT_EQ(get_file(path), "precious");
    rename_error = 0;
    fs::remove(path);
  }
  // Other refusals are none of the folder's.
  put_file(path, "");
  rename_error = EIO;
  EXPECT_TRUE(has(message_of<IoError>([&] { begin(path); }), {path, "Input/output error", "intact"}));
  EXPECT_EQ(get_file(path), "");
}

TEST_F(OutputFileTest, KnowsWhetherItsTextHasBeenWritten) {
  OutputFile file = begin(dir_ / "report");
  EXPECT_FALSE(file.written());
  rename_error = EIO;
  message_of<IoError>([&] { file.write("the end"); });
  EXPECT_FALSE(file.written());
  file.write("the end");
  EXPECT_TRUE(file.written());
}

TEST_F(OutputFileTest, APipeWithoutReaderIsNotWaitedForForEver) {
  const std::string pipe = dir_ / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  OutputFile file = begin(pipe);
  EXPECT_TRUE(has(message_of<IoError>([&] { file.write("the end"); }), {"--json " + pipe, "nobody reads"}));
  // A reader that is there, and slow, gets all of a text that is longer than the pipe.
  const std::string text(1 << 20, 'x');
  std::string got;
  std::thread reader([&] { got = get_file(pipe); });
  file.write(text);
  reader.join();
  EXPECT_EQ(got, text);
}

TEST_F(OutputFileTest, WhatABrokenRunLeftGoesWithTheNext) {
  const std::string path = dir_ / "report.json";
  put_file(path, "");
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    PartialFile replaced(path);
    replaced.place();
    PartialFile half(path);
    half.prepare();
    ::_exit(0);
  }
  ::waitpid(child, nullptr, 0);
  put_file(dir_ / ".rank-0.h5.0123456789abcdef.partial", "another file's");
  EXPECT_GT(names_in(dir_.string()).size(), 5U);
  begin(path).write("the end");
  EXPECT_EQ(get_file(path), "the end");
  EXPECT_EQ(names_in(dir_.string()),
            (std::vector<std::string>{".rank-0.h5.0123456789abcdef.partial", "report.json"}));
}

TEST_F(OutputFileTest, PipesAndDevicesAreWrittenOnce) {
  begin("/dev/null").write("the end");
  EXPECT_TRUE(
      has(message_of<IoError>([&] { begin("/dev/full").write("the end"); }), {"/dev/full", "No space"}));
  const std::string pipe = dir_ / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  OutputFile file = begin(pipe);
  std::string text;
  std::thread reader([&] { text = get_file(pipe); });
  file.write("the end");
  reader.join();
  EXPECT_EQ(text, "the end");
  fs::remove(pipe);
  put_file(pipe, "precious");
  EXPECT_TRUE(has(message_of<IoError>([&] { file.write("the end"); }), {pipe}));
  EXPECT_EQ(get_file(pipe), "precious");
}

TEST_F(OutputFileTest, APipeThatNobodyEmptiesIsNotWaitedForForEver) {
  const std::string pipe = dir_ / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  const int reader = ::open(pipe.c_str(), O_RDONLY | O_NONBLOCK);
  ASSERT_GE(reader, 0);
  const std::string text(1 << 20, 'x');
  OutputFile file = begin(pipe);
  EXPECT_TRUE(has(message_of<IoError>([&] { file.write(text); }), {"--json " + pipe, "nobody reads"}));
  EXPECT_TRUE(file.written());
  // A signal ends it sooner. It stays noted, so that this test is the last one here.
  watch_signals();
  std::raise(SIGTERM);
  EXPECT_TRUE(has(message_of<StoppedError>([&] { begin(pipe).write(text); }), {pipe, "stopped by SIGTERM"}));
  ::close(reader);
}

}  // namespace
}  // namespace weightcast
