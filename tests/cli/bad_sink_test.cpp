#include <sys/mount.h>
#include <sys/stat.h>

#include <chrono>
#include <csignal>
#include <thread>

#include "cli/cli.hpp"
#include "cli/slow_disk.hpp"
#include "storage/output_lock.hpp"

namespace weightcast::test_support {
namespace {

using BadSink = CliTest;

/// A file system of 1 MiB, which is too small for the two shards of 0.75 MiB.
class SmallDisk {
 public:
  explicit SmallDisk(const std::string& path) : path_(path) {
    std::filesystem::create_directory(path_);
    mounted_ = ::mount("tmpfs", path_.c_str(), "tmpfs", 0, "size=1m") == 0;
  }
  ~SmallDisk() {
    if (mounted_) ::umount2(path_.c_str(), MNT_DETACH);
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;
  bool mounted() const { return mounted_; }

 private:
  std::string path_;
  bool mounted_ = false;
};

TEST_F(BadSink, FullDisk) {
  const SmallDisk disk(sink_);
  if (!disk.mounted()) GTEST_SKIP() << "mounting is not permitted here";
  put_old_shards();
  const auto before = folder_contents(sink_);
  const std::string json = dir_ / "report.json";
  const Outcome outcome = run_job(3, sync_words(trained(0)) + Words{"--json", json});
  EXPECT_TRUE(refused(outcome, 74, {sink_ + "/rank-", "No space left on device", "free some space"}));
  EXPECT_EQ(folder_contents(sink_), before);
  const auto report = read_json(json);
  EXPECT_EQ(report.at("status"), "input/output");
  EXPECT_TRUE(has(report.at("error"), {sink_ + "/rank-", "No space left on device"}));
}

TEST_F(BadSink, FileSizeLimit) {
  put_old_shards();
  const auto before = folder_contents(sink_);
  // The limit counts for shared memory too, so Open MPI must do without.
  CommandLine command = mpirun(
      3, Words{"sh", "-c", "ulimit -f 256; exec \"$0\" \"$@\"", WEIGHTCAST_BINARY} + sync_words(trained(0)));
  command.environment["OMPI_MCA_btl"] = "self,tcp";
  EXPECT_TRUE(refused(run(command), 74, {sink_ + "/rank-", "File too large", "free some space"}));
  EXPECT_EQ(folder_contents(sink_), before);
}

TEST_F(BadSink, OneRankThatCannotWriteStopsAll) {
  put_old_shards();
  std::filesystem::remove(sink_ + "/rank-1.h5");
  std::filesystem::create_directory(sink_ + "/rank-1.h5");
  const auto before = folder_contents(sink_);
  EXPECT_TRUE(
      refused(run_job(3, sync_words(trained(0))), 74,
              {"rank 2", sink_ + "/rank-1.h5", "does not say that this program wrote it", "remove it"}));
  EXPECT_EQ(folder_contents(sink_), before);
}

TEST_F(BadSink, BelowAFile) {
  put_file(sink_, "no folder");
  EXPECT_TRUE(refused(run_job(3, sync_words(trained(0))), 74, {"the folder " + sink_, "Not a directory"}));
  EXPECT_EQ(get_file(sink_), "no folder");
}

TEST_F(BadSink, OfTheSecondVersionLeavesTheFirst) {
  const std::string second = dir_ / "shards-8";
  put_file(second, "no folder");
  const Outcome outcome =
      run_job(3, {"sync", "--source", trained(0), "--source", trained(1), "--weight-version", "7",
                  "--inference", "tp=2,ep=2", "--sink", "hdf5:" + (dir_ / "shards-{version}")});
  EXPECT_TRUE(refused(outcome, 74, {"the folder " + second, "Not a directory"}));
  EXPECT_TRUE(
      done(run_plain({"verify", dir_ / "shards-7", "--source", trained(0), "--weight-version", "7"})));
  EXPECT_EQ(folder_contents(dir_ / "shards-7").size(), 2);
}

TEST_F(BadSink, ReportThatCannotBeWritten) {
  const Outcome outcome = run_job(3, sync_words(trained(0)) + Words{"--json", dir_ / "absent/report.json"});
  EXPECT_TRUE(refused(outcome, 74, {dir_ / "absent/report.json", "No such file"}));
  EXPECT_TRUE(refused(run_plain({"plan", "--source", trained(0), "--json", dir_ / "absent/plan.json"}), 74,
                      {dir_ / "absent/plan.json", "No such file"}));
}

TEST_F(BadSink, ThatHoldsTheSource) {
  for (const std::string& folder : {sink_, dir_ / "v0-0"}) {
    const std::string source = folder + "/rank-3.h5";
    EXPECT_TRUE(done(run_plain({"convert", "--source", trained(0), "--output", source})));
    std::filesystem::create_symlink(source, folder + "/link.h5");
    const auto before = folder_contents(folder);
    const std::string sink = "hdf5:" + (folder == sink_ ? sink_ : dir_ / "v{version}-{version}");
    const std::string name = folder == sink_ ? folder + "/link.h5" : source;
    EXPECT_TRUE(refused(run_job(2, {"sync", "--source", name, "--sink", sink}), 64,
                        {"--sink hdf5:" + folder, "rank-3.h5 of the source", "name another folder"}));
    EXPECT_EQ(folder_contents(folder), before);
  }
  // Under a name that no shard has it may lie there.
  std::filesystem::rename(sink_ + "/rank-3.h5", sink_ + "/source.h5");
  EXPECT_TRUE(done(run_job(2, {"sync", "--source", sink_ + "/source.h5", "--sink", "hdf5:" + sink_})));
  EXPECT_TRUE(std::filesystem::exists(sink_ + "/source.h5"));
}

TEST_F(BadSink, WhatOthersCallAShardStays) {
  EXPECT_TRUE(done(run_job(
      5, {"sync", "--source", trained(0), "--inference", "tp=2,replicas=2", "--sink", "hdf5:" + sink_})));
  put_file(sink_ + "/rank-5.h5", "a text");
  std::filesystem::create_directory(sink_ + "/rank-6.h5");
  ASSERT_EQ(::mkfifo((sink_ + "/rank-7.h5").c_str(), 0600), 0);
  EXPECT_TRUE(done(run_plain({"convert", "--source", trained(0), "--output", sink_ + "/rank-8.h5"})));
  std::filesystem::create_symlink(sink_ + "/rank-3.h5", sink_ + "/rank-9.h5");
  const Outcome outcome = run_job(3, sync_words(trained(1)));
  EXPECT_TRUE(done(outcome));
  for (const char* name : {"rank-5.h5", "rank-6.h5", "rank-7.h5", "rank-8.h5", "rank-9.h5"}) {
    EXPECT_TRUE(has(outcome.err, {sink_ + "/" + name + " stays"}));
    EXPECT_TRUE(std::filesystem::exists(std::filesystem::symlink_status(sink_ + "/" + name))) << name;
  }
  EXPECT_EQ(get_file(sink_ + "/rank-5.h5"), "a text");
  for (const char* name : {"rank-2.h5", "rank-3.h5"}) {
    EXPECT_FALSE(std::filesystem::exists(sink_ + "/" + name)) << name;
  }
}

TEST_F(BadSink, WhatOthersHaveUnderItsNamesStays) {
  const auto refuse = [&](const Words& words, const std::string& path) {
    const auto before = folder_contents(dir_.string());
    const bool job = words.front() == "sync";
    EXPECT_TRUE(refused(job ? run_job(3, words) : run_plain(words), 74,
                        {path, "does not say that this program wrote it", "remove it"}));
    EXPECT_TRUE(folder_contents(dir_.string()) == before);
    EXPECT_TRUE(std::filesystem::exists(std::filesystem::symlink_status(path)));
    std::filesystem::remove_all(path);
  };
  put_file(sink_ + "/rank-0.h5", "a text");
  refuse(sync_words(trained(0)), sink_ + "/rank-0.h5");
  EXPECT_TRUE(done(run_plain({"convert", "--source", trained(0), "--output", sink_ + "/rank-1.h5"})));
  refuse(sync_words(trained(0)), sink_ + "/rank-1.h5");
  put_old_shards();
  std::filesystem::remove(sink_ + "/rank-1.h5");
  std::filesystem::create_symlink(sink_ + "/rank-0.h5", sink_ + "/rank-1.h5");
  refuse(sync_words(trained(0)), sink_ + "/rank-1.h5");

  const Words convert{"convert", "--source", trained(0), "--output"};
  put_file(dir_ / "notes.h5", "my notes");
  refuse(convert + Words{dir_ / "notes.h5"}, dir_ / "notes.h5");
  std::filesystem::rename(sink_ + "/rank-0.h5", dir_ / "shard.h5");
  refuse(convert + Words{dir_ / "shard.h5"}, dir_ / "shard.h5");

  const std::string folder = dir_ / "model";
  const std::string other = get_file(trained(1) + "/model.safetensors");
  const Words synth{"synth", "--model", model_folder("tiny-qwen3"), "--output", folder};
  for (const Words& words : {convert + Words{folder}, synth}) {
    for (const char* name : {"config.json", "model.safetensors.index.json"}) {
      put_file(folder + "/" + name, R"({"precious":1})");
      refuse(words, folder + "/" + name);
    }
    for (const char* name :
         {"model.safetensors", "model-00001-of-00009.safetensors", "model_1.safetensors"}) {
      put_file(folder + "/" + name, other);
      refuse(words, folder + "/" + name);
      put_file(folder + "/" + name, "a text");
      refuse(words, folder + "/" + name);
      std::filesystem::create_directory(folder + "/" + name);
      refuse(words, folder + "/" + name);
      ASSERT_EQ(::mkfifo((folder + "/" + name).c_str(), 0600), 0);
      refuse(words, folder + "/" + name);
    }
  }
  const Words trainers{"--to", "megatron", "--trainer-alloc", "megatron:(attn:d1p1t2c1|ffn:d1p1t2e1)"};
  for (const char* name : {"config.json", "trainer-1.safetensors"}) {
    put_file(folder + "/" + name, "a text");
    refuse(convert + Words{folder} + trainers, folder + "/" + name);
  }
  // Its own it replaces, with all that would be read beside the new.
  EXPECT_TRUE(done(run_plain(convert + Words{folder, "--max-file-size", "500KB"})));
  EXPECT_GT(folder_contents(folder).size(), 2U);
  EXPECT_TRUE(done(run_plain(convert + Words{folder})));
  EXPECT_EQ(folder_contents(folder).size(), 2U);
}

TEST_F(BadSink, WhatMayBeItsOwnAndCannotBeReadIsNotPassedOver) {
  EXPECT_TRUE(done(run_job(
      5, {"sync", "--source", trained(0), "--inference", "tp=2,replicas=2", "--sink", "hdf5:" + sink_})));
  std::filesystem::resize_file(sink_ + "/rank-3.h5", 4096);
  const auto before = folder_contents(sink_);
  EXPECT_TRUE(refused(run_job(3, sync_words(trained(1))), 74, {sink_ + "/rank-3.h5", "remove it"}));
  EXPECT_TRUE(folder_contents(sink_) == before);
}

TEST_F(BadSink, OntoItsSource) {
  const std::string source = dir_ / "source";
  const std::string file = dir_ / "source.h5";
  EXPECT_TRUE(done(run_plain({"convert", "--source", trained(0), "--output", source})));
  EXPECT_TRUE(done(run_plain({"convert", "--source", trained(0), "--output", file})));
  std::filesystem::create_directory_symlink(source, dir_ / "link");
  std::filesystem::create_symlink(file, dir_ / "link.h5");
  std::filesystem::create_hard_link(file, dir_ / "hard.h5");
  // A folder of links to the files of another.
  std::filesystem::create_directory(dir_ / "links");
  for (const char* name : {"model.safetensors", "config.json"}) {
    std::filesystem::create_symlink(source + "/" + name, dir_ / ("links/" + std::string(name)));
  }
  const auto before = folder_contents(dir_.string());
  const auto refuse = [&](const Words& words) {
    EXPECT_TRUE(refused(run_plain(words), 64, {"--output " + words.back(), "name another"}));
    EXPECT_TRUE(folder_contents(dir_.string()) == before);
  };
  for (const std::string& output : {source, source + "/", dir_ / "./source", dir_ / "link"}) {
    refuse({"convert", "--source", source, "--output", output});
    refuse({"convert", "--source", source, "--max-file-size", "500KB", "--output", output});
    refuse({"convert", "--source", dir_ / "link", "--output", output});
    refuse({"convert", "--source", dir_ / "links", "--output", output});
    refuse({"synth", "--model", source, "--output", output});
    refuse({"synth", "--model", source + "/config.json", "--output", output});
    refuse({"synth", "--model", dir_ / "links", "--output", output});
  }
  for (const std::string& output : {file, dir_ / "./source.h5", dir_ / "link.h5", dir_ / "hard.h5"}) {
    refuse({"convert", "--source", file, "--output", output});
    refuse({"convert", "--source", dir_ / "link.h5", "--output", output});
  }
}

TEST_F(BadSink, LineThatCannotBeWrittenInTheEnd) {
  CommandLine command;
  const std::string output = dir_ / "model";
  command.words = {"sh",
                   "-c",
                   "exec \"$0\" \"$@\" >/dev/full",
                   WEIGHTCAST_BINARY,
                   "convert",
                   "--source",
                   trained(0),
                   "--output",
                   output};
  EXPECT_TRUE(refused(run(command), 74, {"stdout", output + " is written and in place"}));
  EXPECT_TRUE(done(run_plain({"inspect", output})));
}

TEST_F(BadSink, ThatIsMovedAwayWhileAJobWritesThere) {
  Words words = sync_words(trained(0));
  for (int i = 1; i < 400; ++i) words = words + Words{"--source", trained(i % 2)};
  Process job(slow_disk_job(3, words, "/.rank-1.h5.", kSlowUpdate));
  ASSERT_TRUE(job.wait_for_output("\n        1 "));
  std::filesystem::rename(sink_, dir_ / "moved");
  EXPECT_TRUE(refused(job.wait(), 74, {"--sink hdf5:" + sink_, "moved or removed", "start it again"}));
  EXPECT_TRUE(folder_contents(sink_).empty());
  // Nor does anything of the job stay in the folder that was moved, but the version that was whole.
  std::vector<std::string> left;
  for (const auto& [name, content] : folder_contents(dir_ / "moved")) left.push_back(name);
  EXPECT_EQ(left, (std::vector<std::string>{"rank-0.h5", "rank-1.h5"}));
  EXPECT_TRUE(done(run_plain({"verify", dir_ / "moved", "--source", trained(0)})) ||
              done(run_plain({"verify", dir_ / "moved", "--source", trained(1)})));
}

TEST_F(BadSink, ReportThatCannotBeWrittenInTheEnd) {
  for (const char* option : {"--json", "--trace"}) {
    EXPECT_TRUE(refused(run_job(3, sync_words(trained(0)) + Words{option, "/dev/full"}), 74,
                        {"/dev/full", "No space", "version 0 is in place"}));
    EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", trained(0)})));
  }
  EXPECT_TRUE(
      refused(run_job(3, {"sync", "--source", trained(0), "--inference", "tp=2", "--json", "/dev/full"}), 74,
              {"/dev/full", "could not be written"}));
}

TEST_F(BadSink, ReportToAFullDevice) {
  // stdout is checked too: a report that is cut short is no report.
  CommandLine command;
  command.words = {"sh", "-c", "exec \"$0\" \"$@\" >/dev/full", WEIGHTCAST_BINARY, "inspect", trained(0)};
  EXPECT_TRUE(refused(run(command), 74, {"stdout"}));
}

TEST_F(BadSink, OutputThatCannotBeMade) {
  put_file(dir_ / "file", "no folder");
  for (const std::string& output : {dir_ / "file/model", dir_ / "file/model.h5"}) {
    EXPECT_TRUE(refused(run_plain({"convert", "--source", trained(0), "--output", output}), 74,
                        {output, "Not a directory"}));
    EXPECT_TRUE(refused(run_plain({"synth", "--model", model_folder("tiny-qwen3"), "--output", output}), 74,
                        {output, "Not a directory"}));
  }
}

TEST_F(BadSink, OutputLargerThanTheDisk) {
  const SmallDisk disk(dir_ / "disk");
  if (!disk.mounted()) GTEST_SKIP() << "mounting is not permitted here";
  for (const std::string& output : {dir_ / "disk/model", dir_ / "disk/model.h5"}) {
    EXPECT_TRUE(refused(run_plain({"convert", "--source", trained(0), "--output", output}), 74,
                        {output, "No space left on device", "free some space"}));
    EXPECT_TRUE(folder_contents(dir_ / "disk").empty());
  }
}

TEST_F(BadSink, FailedConversionLeavesTheOldCheckpoint) {
  const std::string output = dir_ / "model";
  EXPECT_TRUE(done(run_plain({"convert", "--source", trained(0), "--output", output})));
  const auto before = folder_contents(output);
  std::string bytes = get_file(trained(1) + "/model.safetensors");
  put_file(dir_ / "cut/model.safetensors", bytes.substr(0, bytes.size() - 2));
  put_file(dir_ / "cut/config.json", get_file(trained(1) + "/config.json"));
  EXPECT_TRUE(refused(run_plain({"convert", "--source", dir_ / "cut", "--output", output}), 65,
                      {dir_ / "cut/model.safetensors", "truncated"}));
  EXPECT_EQ(folder_contents(output), before);
}

TEST_F(BadSink, FailedConversionLeavesNoFolder) {
  const std::string bytes = get_file(trained(1) + "/model.safetensors");
  put_file(dir_ / "cut/model.safetensors", bytes.substr(0, bytes.size() - 2));
  put_file(dir_ / "cut/config.json", get_file(trained(1) + "/config.json"));
  const Words convert{"convert", "--source", dir_ / "cut", "--output"};
  const Words trainers{"--to", "megatron", "--trainer-alloc", "megatron:(attn:d1p1t2c1|ffn:d1p1t2e1)"};
  const Words synth{"synth", "--model", model_folder("tiny-qwen3"), "--output"};
  for (const char* output : {"new/nested/model", "new/nested/model.h5"}) {
    EXPECT_TRUE(refused(run_plain(convert + Words{dir_ / output}), 65, {"truncated"}));
    CommandLine limited;
    limited.words = Words{"sh", "-c", "ulimit -f 1; exec \"$0\" \"$@\"", WEIGHTCAST_BINARY} + synth +
                    Words{dir_ / output};
    EXPECT_TRUE(refused(run(limited), 74, {"File too large"}));
    limited.words = Words{"sh",
                          "-c",
                          "ulimit -f 1; exec \"$0\" \"$@\"",
                          WEIGHTCAST_BINARY,
                          "convert",
                          "--source",
                          trained(0),
                          "--output",
                          dir_ / output};
    EXPECT_TRUE(refused(run(limited), 74, {"File too large"}));
    EXPECT_FALSE(std::filesystem::exists(dir_ / "new")) << output;
  }
  CommandLine limited;
  limited.words = Words{"sh",
                        "-c",
                        "ulimit -f 64; exec \"$0\" \"$@\"",
                        WEIGHTCAST_BINARY,
                        "convert",
                        "--source",
                        trained(0),
                        "--output",
                        dir_ / "new/nested/shards"} +
                  trainers;
  EXPECT_TRUE(refused(run(limited), 74, {"File too large"}));
  EXPECT_FALSE(std::filesystem::exists(dir_ / "new"));
}

TEST_F(BadSink, OfAnotherJobThatIsWriting) {
  Words words = sync_words(trained(0));
  for (int i = 1; i < 400; ++i) words = words + Words{"--source", trained(i % 2)};
  Process first(slow_disk_job(3, words, "/.rank-1.h5.", kSlowUpdate));
  ASSERT_TRUE(first.wait_for_output("\n        1 "));
  const Outcome second = run_job(3, sync_words(trained(181)));
  EXPECT_TRUE(refused(second, 74, {"--sink hdf5:" + sink_, "another job", "sync on host", "process "}));
  first.send_to_children(SIGUSR1);
  EXPECT_TRUE(refused(first.wait(), 75, {"of 400 updates are done"}));
  const auto version = read_checkpoint(sink_ + "/rank-0.h5").weight_version.value_or(-1);
  EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", trained(static_cast<int>(version % 2))})));
  EXPECT_EQ(folder_contents(sink_).size(), 2);
}

TEST_F(BadSink, OfWhichAnotherJobWritesALaterVersion) {
  const OutputLock lock(folder_lock(dir_ / "shards-9"), "--sink", "sync");
  const Words words{"sync",     "--source", trained(0),
                    "--source", trained(1), "--weight-version",
                    "8",        "--sink",   "hdf5:" + (dir_ / "shards-{version}")};
  EXPECT_TRUE(refused(run_job(2, words), 74, {"shards-9", "another job", "process "}));
  // The one before is whole, and has been in use since.
  EXPECT_TRUE(done(run_plain({"verify", dir_ / "shards-8", "--source", trained(0)})));
  EXPECT_EQ(folder_contents(dir_ / "shards-8").size(), 1);
}

TEST_F(BadSink, MakesNoFolderOfAVersionThatDoesNotCome) {
  Words words{"sync", "--inference", "tp=1", "--sink", "hdf5:" + (dir_ / "versions/{version}")};
  for (int i = 0; i < 400; ++i) words = words + Words{"--source", trained(i % 2)};
  Process job(slow_disk_job(2, words, "/.rank-0.h5.", kSlowUpdate));
  ASSERT_TRUE(job.wait_for_output("\n        1 "));
  job.send_to_children(SIGUSR1);
  EXPECT_TRUE(refused(job.wait(), 75, {"of 400 updates are done"}));
  int folders = 0;
  for (const auto& version : std::filesystem::directory_iterator(dir_ / "versions")) {
    EXPECT_EQ(folder_contents(version.path()).size(), 1) << version.path();
    ++folders;
  }
  EXPECT_GE(folders, 1);
  EXPECT_LT(folders, 400);
}

TEST_F(BadSink, ThatFailsLeavesNoFolder) {
  CommandLine command =
      mpirun(3, Words{"sh", "-c", "ulimit -f 256; exec \"$0\" \"$@\"", WEIGHTCAST_BINARY, "sync", "--source",
                      trained(0), "--inference", "tp=2", "--sink", "hdf5:" + (dir_ / "new/folder")});
  command.environment["OMPI_MCA_btl"] = "self,tcp";
  EXPECT_TRUE(refused(run(command), 74, {"new/folder/rank-", "File too large"}));
  EXPECT_FALSE(std::filesystem::exists(dir_ / "new"));
}

TEST_F(BadSink, OutputOfAnotherJobThatIsWriting) {
  for (const std::string& output : {dir_ / "model", dir_ / "model.h5"}) {
    const OutputLock lock(output.ends_with(".h5") ? file_lock(output) : folder_lock(output), "--output",
                          "synth");
    const auto before = folder_contents(dir_.string());
    EXPECT_TRUE(refused(run_plain({"convert", "--source", trained(0), "--output", output}), 74,
                        {"--output " + output, "another job", "synth on host"}));
    EXPECT_TRUE(refused(run_plain({"synth", "--model", model_folder("tiny-qwen3"), "--output", output}), 74,
                        {"--output " + output, "another job", "synth on host"}));
    EXPECT_EQ(folder_contents(dir_.string()), before);
  }
  // Nor beside one: a file into the folder that a job writes, and the folder of such a file.
  for (const auto& [held, output] : std::map<std::string, std::string>{
           {folder_lock(dir_ / "m"), dir_ / "m/x.h5"}, {file_lock(dir_ / "n/x.h5"), dir_ / "n"}}) {
    const OutputLock lock(held, "--output", "synth");
    EXPECT_TRUE(
        refused(run_plain({"convert", "--source", trained(0), "--output", output}), 74,
                {"--output " + output + ": another job is writing beside it", held, "wait for its end"}));
    EXPECT_EQ(folder_contents(std::filesystem::path(held).parent_path().string()).size(), 1);
  }
  {
    const OutputLock lock(file_lock(dir_ / "o/x.h5"), "--output", "synth");
    EXPECT_TRUE(done(run_plain({"convert", "--source", trained(0), "--output", dir_ / "o/y.h5"})));
  }
  const OutputLock lock(folder_lock(dir_ / "trainers"), "--output", "convert");
  EXPECT_TRUE(refused(run_plain({"convert", "--source", trained(0), "--to", "megatron", "--trainer-alloc",
                                 "megatron:(attn:d1p1t2c1|ffn:d1p1t2e1)", "--output", dir_ / "trainers"}),
                      74, {"--output " + (dir_ / "trainers"), "another job"}));
}

TEST_F(BadSink, FilesOfOthersThatComeWhileAJobWritesStay) {
  using namespace std::chrono_literals;
  const auto come_before_renames = [&](const CommandLine& command, const std::string& folder,
                                       const std::string& name) {
    CommandLine slow = command;
    slow.environment.insert({{"LD_PRELOAD", WEIGHTCAST_SLOW_DISK},
                             {"SLOW_DISK_FILE", "/." + name + "."},
                             {"SLOW_DISK_MILLISECONDS", "1500"}});
    Process job(slow);
    const auto is_written = [&] {
      std::error_code ignored;
      std::filesystem::directory_iterator entry(folder, ignored);
      for (const std::filesystem::directory_iterator end; entry != end; entry.increment(ignored)) {
        if (entry->path().filename().string().starts_with("." + name + ".")) return true;
      }
      return false;
    };
    while (job.running() && !is_written()) std::this_thread::sleep_for(5ms);
    // What comes at once is found by the check that follows.
    std::this_thread::sleep_for(300ms);
    put_file(dir_ / "thesis", "my thesis");
    std::filesystem::rename(dir_ / "thesis", folder + "/" + name);
    EXPECT_TRUE(refused(job.wait(), 74, {folder + "/" + name}));
    EXPECT_EQ(get_file(folder + "/" + name), "my thesis");
    std::filesystem::remove(folder + "/" + name);
  };
  for (const bool had_old : {false, true}) {
    for (const char* name : {"rank-0.h5", "rank-1.h5"}) {
      if (had_old) put_old_shards();
      const auto before = folder_contents(sink_);
      come_before_renames(job_command(3, sync_words(trained(0))), sink_, name);
      auto expected = before;
      expected.erase(name);
      EXPECT_TRUE(folder_contents(sink_) == expected) << name;
    }
  }
  const Words convert{"convert", "--source", trained(0), "--output"};
  std::filesystem::create_directory(dir_ / "out");
  come_before_renames(plain_command(convert + Words{dir_ / "out/x.h5"}), dir_ / "out", "x.h5");
  come_before_renames(plain_command(convert + Words{dir_ / "out"}), dir_ / "out", "config.json");
  come_before_renames(plain_command(convert + Words{dir_ / "out", "--to", "megatron", "--trainer-alloc",
                                                    "megatron:(attn:d1p1t2c1|ffn:d1p1t2e1)"}),
                      dir_ / "out", "trainer-1.safetensors");
  EXPECT_TRUE(folder_contents(dir_ / "out").empty());
}

TEST_F(BadSink, OneFileWithANameThatJobsIntoTheFolderHave) {
  // A job into the folder would clear away what the other writes, and the other way round.
  std::filesystem::create_directory(sink_);
  const Words convert{"convert", "--source", trained(0), "--output"};
  {
    const OutputLock folder(folder_lock(sink_), "--sink", "sync");
    for (const char* name : {"/rank-0.h5", "/trainer-0.h5"}) {
      EXPECT_TRUE(refused(run_plain(convert + Words{sink_ + name}), 74,
                          {"--output " + sink_ + name, "another job", "sync on host"}));
    }
    EXPECT_TRUE(refused(run_plain(convert + Words{sink_ + "/model.h5"}), 74,
                        {"--output " + sink_ + "/model.h5", "another job is writing beside it"}));
  }
  using namespace std::chrono_literals;
  Process file(plain_command(convert + Words{sink_ + "/trainer-0.h5"}, {{"LD_PRELOAD", WEIGHTCAST_SLOW_DISK},
                                                                        {"SLOW_DISK_FILE", "/.trainer-0.h5."},
                                                                        {"SLOW_DISK_MILLISECONDS", "3000"}}));
  while (file.running() && !std::filesystem::exists(folder_lock(sink_))) std::this_thread::sleep_for(5ms);
  EXPECT_TRUE(refused(run_plain(convert + Words{sink_, "--to", "megatron", "--trainer-alloc",
                                                "megatron:(attn:d1p1t2c1|ffn:d1p1t2e1)"}),
                      74, {"--output " + sink_, "another job", "convert on host"}));
  EXPECT_TRUE(done(file.wait()));
  EXPECT_EQ(folder_contents(sink_).size(), 1);
}

TEST_F(BadSink, NamesThatLookLikeItsHiddenOnesStay) {
  const std::map<std::string, std::string> others{{".x.h5.partial", "mine"},
                                                  {".x.h5.0123456789abcdef.old", "mine, too"}};
  for (const auto& [name, text] : others) put_file(dir_ / ("h/" + name), text);
  EXPECT_TRUE(done(run_plain({"convert", "--source", trained(0), "--output", dir_ / "h/x.h5"})));
  auto contents = folder_contents(dir_ / "h");
  EXPECT_EQ(contents.erase("x.h5"), 1U);
  EXPECT_EQ(contents, others);
}

TEST_F(BadSink, HiddenFilesOfOthersStayInTheFolderOfShards) {
  // Each set of kinds that a killed job may leave, of somebody else.
  const std::vector<std::vector<std::string>> sets{
      {"old", "journal"},           {"partial"}, {"journal"}, {"old", "partial"}, {"partial", "journal"},
      {"old", "partial", "journal"}};
  for (const std::string format : {"hdf5", "safetensors"}) {
    const std::string end = format == "hdf5" ? "h5" : "safetensors";
    for (const auto& kinds : sets) {
      std::filesystem::remove_all(sink_);
      std::map<std::string, std::string> others;
      for (const std::string& kind : kinds) {
        others[".rank-0." + end + ".0123456789abcdef." + kind] = "mine, " + kind;
      }
      for (const auto& [name, text] : others) put_file(sink_ + "/" + name, text);
      const Outcome outcome =
          run_job(3, {"sync", "--source", trained(0), "--inference", "tp=2", "--sink", format + ":" + sink_});
      EXPECT_TRUE(done(outcome));
      EXPECT_TRUE(has(outcome.err, {"stays", "remove it if nobody needs it"}));
      auto contents = folder_contents(sink_);
      EXPECT_EQ(contents.erase("rank-0." + end) + contents.erase("rank-1." + end), 2U);
      EXPECT_EQ(contents, others);
    }
  }
}

TEST_F(BadSink, KeepsThePermissionsOfWhatItReplaces) {
  const auto mode_of = [](const std::string& path) { return std::filesystem::status(path).permissions(); };
  const auto give = [](const std::string& path, mode_t mode) { ASSERT_EQ(::chmod(path.c_str(), mode), 0); };
  for (const std::string& output : {dir_ / "x.h5", dir_ / "model"}) {
    const std::string file = output.ends_with(".h5") ? output : output + "/model.safetensors";
    const Words convert{"convert", "--source", trained(0), "--output", output};
    EXPECT_TRUE(done(run_plain(convert)));
    give(file, 0600);
    EXPECT_TRUE(done(run_plain(convert)));
    EXPECT_EQ(mode_of(file), std::filesystem::perms(0600)) << file;
  }
  EXPECT_TRUE(done(run_job(3, sync_words(trained(0)))));
  give(sink_ + "/rank-1.h5", 0640);
  EXPECT_TRUE(done(run_job(3, sync_words(trained(1)))));
  EXPECT_EQ(mode_of(sink_ + "/rank-1.h5"), std::filesystem::perms(0640));
}

TEST_F(BadSink, ThatIsAnotherFolderForSomeRanksOfAHost) {
  for (const char* name : {"0", "1", "2"}) std::filesystem::create_directory(dir_ / name);
  std::filesystem::create_directory_symlink(dir_ / "1", dir_ / "link");
  // Each rank in the folder that a list of words names for it.
  const auto run_in = [&](const std::string& folders, const std::string& sink) {
    return run(mpirun(3, Words{"sh", "-c",
                               "i=$OMPI_COMM_WORLD_RANK; for f in " + folders +
                                   R"(; do [ $i = 0 ] && cd "$f"; i=$((i-1)); done; exec "$0" "$@")",
                               WEIGHTCAST_BINARY, "sync", "--source", trained(0), "--inference", "tp=2",
                               "--sink", "hdf5:" + sink}));
  };
  const auto at = [&](const char* name) { return dir_ / name; };
  for (const char* sink : {"new/shards", "."}) {
    EXPECT_TRUE(refused(
        run_in(at("0") + " " + at("1") + " " + at("2"), sink), 64,
        {std::string("--sink hdf5:") + sink, at("1"), "rank 1", at("2"), "rank 2", "name the whole path"}));
    for (const char* name : {"0", "1", "2"}) EXPECT_TRUE(std::filesystem::is_empty(at(name))) << name;
  }
  // Who writes nothing there may be anywhere, and a folder has several names.
  EXPECT_TRUE(done(run_in(at("0") + " " + at("1") + " " + at("link"), "new/shards")));
  EXPECT_EQ(folder_contents(at("1") + "/new/shards").size(), 2U);
  EXPECT_TRUE(done(run_in(at("0") + " " + at("1") + " " + at("2"), sink_)));
}

TEST_F(BadSink, OfTwoVersionsThatAreOneFolder) {
  const Words words{"sync",
                    "--source",
                    trained(0),
                    "--source",
                    trained(1),
                    "--sink",
                    "hdf5:" + (dir_ / "o-{version}/shards")};
  std::filesystem::create_directory_symlink(dir_ / "o-0", dir_ / "o-1");
  std::filesystem::create_directory(dir_ / "o-0");
  EXPECT_TRUE(refused(run_job(2, words), 64,
                      {dir_ / "o-0/shards", dir_ / "o-1/shards", "the same folder", "remove the link"}));
  EXPECT_TRUE(folder_contents(dir_.string()).empty());
  // Found when the link leads somewhere: the first version stays.
  std::filesystem::remove(dir_ / "o-0");
  EXPECT_TRUE(refused(run_job(2, words), 64, {dir_ / "o-1/shards", "the same folder"}));
  EXPECT_TRUE(done(run_plain({"verify", dir_ / "o-0/shards", "--source", trained(0)})));
}

TEST_F(BadSink, LinksInTheFolderLeadNobodyAstray) {
  // Where others may write, too: hidden names and the lock lead nowhere.
  put_file(dir_ / "victim", "precious");
  std::filesystem::create_directory(sink_);
  for (const char* name : {".rank-0.h5.0123456789abcdef.partial", ".rank-1.h5.0123456789abcdef.partial"}) {
    std::filesystem::create_symlink(dir_ / "victim", sink_ + "/" + name);
  }
  EXPECT_TRUE(done(run_job(3, sync_words(trained(0)))));
  EXPECT_EQ(get_file(dir_ / "victim"), "precious");
  for (const char* rank : {"0", "1"}) {
    EXPECT_TRUE(
        std::filesystem::is_regular_file(std::filesystem::symlink_status(sink_ + "/rank-" + rank + ".h5")));
    // What somebody else has put there stays.
    EXPECT_TRUE(std::filesystem::is_symlink(sink_ + "/.rank-" + rank + ".h5.0123456789abcdef.partial"));
  }
  std::filesystem::create_symlink(dir_ / "victim", folder_lock(sink_));
  EXPECT_TRUE(refused(run_job(3, sync_words(trained(1))), 74, {folder_lock(sink_), "symbolic links"}));
  EXPECT_EQ(get_file(dir_ / "victim"), "precious");
}

}  // namespace
}  // namespace weightcast::test_support
