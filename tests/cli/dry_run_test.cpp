#include "cli/cli.hpp"

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
