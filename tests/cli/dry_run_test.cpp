#include <sys/stat.h>

#include <functional>

#include "cli/cli.hpp"
#include "storage/output_lock.hpp"

namespace weightcast::test_support {
namespace {

class DryRun : public CliTest {
 protected:
  Words words_ = sync_words(trained(0)) + Words{"--dry-run"};
};

TEST_F(DryRun, SaysWhatTheJobWouldDoAndDoesNothing) {
  const Outcome outcome = run_plain(words_ + Words{"--json", dir_ / "plan.json"});
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(outcome.out.starts_with("# 1 trainer sends ")) << outcome.out;
  EXPECT_TRUE(has(outcome.out, {"busiest sender", "# sink: 2 shards of ", " in " + sink_,
                                "# memory: ", "# dry run: ", "start it in 3 ranks"}));
  EXPECT_EQ(read_json(dir_ / "plan.json").at("ranks").size(), 3);
  EXPECT_FALSE(std::filesystem::exists(sink_));
  EXPECT_TRUE(done(run_job(3, sync_words(trained(0)))));
}

TEST_F(DryRun, OneOfAJobsProcessesSpeaks) {
  const Outcome outcome = run_job(3, words_);
  EXPECT_TRUE(done(outcome));
  const std::size_t first = outcome.out.find("# dry run");
  EXPECT_NE(first, std::string::npos);
  EXPECT_EQ(outcome.out.find("# dry run", first + 1), std::string::npos);
}

TEST_F(DryRun, RefusesWhatTheJobWouldRefuse) {
  EXPECT_TRUE(refused(run_plain({"sync", "--dry-run"}), 64, {"--source"}));
  EXPECT_TRUE(refused(run_plain(sync_words(dir_ / "absent") + Words{"--dry-run"}), 74, {dir_ / "absent"}));
  EXPECT_TRUE(
      refused(run_plain({"sync", "--source", trained(0), "--inference", "tp=3", "--dry-run"}), 64, {"tp"}));
  // A file of somebody else under a shard's name.
  put_file(sink_ + "/rank-1.h5", "my thesis");
  const auto before = folder_contents(sink_);
  EXPECT_TRUE(refused(run_plain(words_ + Words{"--json", dir_ / "report.json"}), 74, {sink_ + "/rank-1.h5"}));
  EXPECT_EQ(folder_contents(sink_), before);
  EXPECT_EQ(read_json(dir_ / "report.json").at("status"), "input/output");
}

TEST_F(DryRun, RefusesASinkThatIsTheSource) {
  std::filesystem::copy(trained(0), dir_ / "model");
  EXPECT_TRUE(refused(run_plain({"sync", "--source", dir_ / "model", "--inference", "tp=2", "--sink",
                                 "hdf5:" + (dir_ / "model"), "--dry-run"}),
                      64, {dir_ / "model"}));
}

TEST_F(DryRun, RefusesASinkWhereNoFolderCanBe) {
  put_file(dir_ / "notes", "mine");
  std::filesystem::create_symlink("nowhere", dir_ / "link");
  for (const std::string& place :
       {dir_ / "notes", dir_ / "notes/below", dir_ / "link", dir_ / "link/below"}) {
    const Words words{"sync", "--source", trained(0), "--inference", "tp=2", "--sink", "hdf5:" + place};
    const Outcome job = run_job(3, words);
    const Outcome dry = run_plain(words + Words{"--dry-run"});
    EXPECT_TRUE(refused(job, 74, {"--sink hdf5:" + place, "cannot make the folder"}));
    EXPECT_TRUE(refused(dry, 74, {"--sink hdf5:" + place, "cannot make the folder"}));
  }
  EXPECT_EQ(get_file(dir_ / "notes"), "mine");
}

TEST_F(DryRun, RefusesWhatLiesUnderTheLocksName) {
  const std::string lock = sink_ + "/.weightcast.lock";
  put_file(dir_ / "notes", "");
  const std::vector<std::function<void()>> makers{
      [&] { std::filesystem::create_directory(lock); },
      [&] { std::filesystem::create_symlink(dir_ / "notes", lock); },
      [&] { ASSERT_EQ(::mkfifo(lock.c_str(), 0600), 0); },
      [&] { put_file(lock, "mine"); },
  };
  for (const auto& make : makers) {
    std::filesystem::remove_all(sink_);
    std::filesystem::create_directory(sink_);
    make();
    const Outcome job = run_job(3, sync_words(trained(0)));
    const Outcome dry = run_plain(words_);
    EXPECT_TRUE(refused(job, 74, {"--sink hdf5:" + sink_, lock}));
    EXPECT_TRUE(refused(dry, 74, {"--sink hdf5:" + sink_, lock}));
  }
}

TEST_F(DryRun, RefusesASinkThatAnotherJobHas) {
  const OutputLock lock(folder_lock(sink_), "--sink", "another sync");
  EXPECT_TRUE(refused(run_plain(words_), 74, {"another job is writing there", "another sync on host"}));
  EXPECT_EQ(folder_contents(sink_).size(), 1U);
  // One that was left blocks nobody, and stays as it is.
  const std::string left = dir_ / "left";
  put_file(folder_lock(left), "weightcast job: sync on host elsewhere\n");
  const auto before = folder_contents(left);
  EXPECT_TRUE(done(run_plain(
      {"sync", "--source", trained(0), "--inference", "tp=2", "--sink", "hdf5:" + left, "--dry-run"})));
  EXPECT_EQ(folder_contents(left), before);
}

TEST_F(DryRun, RefusesASinkThatTheKernelMakesUp) {
  for (const char* place : {"/proc/x", "/sys/kernel/x", "/proc"}) {
    const Words words{
        "sync", "--source", trained(0), "--inference", "tp=2", "--sink", std::string("hdf5:") + place};
    EXPECT_TRUE(refused(run_job(3, words), 74, {std::string("--sink hdf5:") + place}));
    EXPECT_TRUE(refused(run_plain(words + Words{"--dry-run"}), 74, {std::string("--sink hdf5:") + place}));
  }
}

TEST_F(DryRun, RefusesATraceOverSomebodysFileAndGpusThatAreNotThere) {
  put_file(dir_ / "t.json", "{}");
  const Words trace{"--trace", dir_ / "t.json"};
  EXPECT_TRUE(refused(run_plain(words_ + trace), 64, {"--trace " + (dir_ / "t.json"), "no report"}));
  EXPECT_EQ(get_file(dir_ / "t.json"), "{}");
  std::filesystem::remove(dir_ / "t.json");
  EXPECT_TRUE(done(run_plain(words_ + trace)));
  EXPECT_FALSE(std::filesystem::exists(dir_ / "t.json"));
  CommandLine nccl{Words{WEIGHTCAST_BINARY} + words_ + Words{"--transport", "nccl"},
                   {{"CUDA_VISIBLE_DEVICES", ""}}};
  EXPECT_TRUE(refused(run(nccl), 64, {"--transport nccl", "--transport mpi"}));
}

TEST_F(DryRun, RefusesAHeadThatIsNotTheEmbedding) {
  std::filesystem::copy(trained(0), dir_ / "model");
  nlohmann::json config = read_json(dir_ / "model/config.json");
  config["tie_word_embeddings"] = true;
  put_file(dir_ / "model/config.json", config.dump());
  const Words words{"sync", "--source", dir_ / "model", "--inference", "tp=2", "--dry-run"};
  EXPECT_TRUE(refused(run_plain(words), 65, {dir_ / "model", "lm_head.weight", "--tied-head embedding"}));
  EXPECT_TRUE(done(run_plain(words + Words{"--tied-head", "embedding"})));
}

TEST_F(DryRun, EscapesTheSinksName) {
  const Outcome outcome = run_plain({"sync", "--source", trained(0), "--inference", "tp=2", "--sink",
                                     "hdf5:" + (dir_ / "a\x1b[31m\nb"), "--dry-run"});
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {dir_ / "a\\x1b[31m\\nb"}));
}

TEST_F(DryRun, IsForSyncAlone) {
  EXPECT_TRUE(refused(run_plain({"plan", "--source", trained(0), "--dry-run"}), 64, {"--dry-run"}));
}

}  // namespace
}  // namespace weightcast::test_support
