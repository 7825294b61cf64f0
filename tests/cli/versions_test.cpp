#include "cli/cli.hpp"

namespace weightcast::test_support {
namespace {

class Versions : public CliTest {
 protected:
  static Outcome verify(const std::string& shards, const std::string& source, int version) {
    return run_plain({"verify", shards, "--source", source, "--weight-version", std::to_string(version)});
  }
};

TEST_F(Versions, OneFolderAVersion) {
  EXPECT_TRUE(done(run_job(4, {"sync", "--source", trained(0), "--source", trained(1), "--source",
                               trained(181), "--trainers", "2", "--inference", "tp=2,ep=2",
                               "--weight-version", "7", "--sink", "hdf5:" + (dir_ / "version-{version}")})));
  EXPECT_TRUE(done(verify(dir_ / "version-7", trained(0), 7)));
  EXPECT_TRUE(done(verify(dir_ / "version-8", trained(1), 8)));
  EXPECT_TRUE(done(verify(dir_ / "version-9", trained(181), 9)));
  EXPECT_TRUE(refused(verify(dir_ / "version-8", trained(0), 8), 66, {"rank-0.h5"}));
}

TEST_F(Versions, TheLastOneStays) {
  EXPECT_TRUE(
      done(run_job(3, sync_words(trained(0)) + Words{"--source", trained(1), "--source", trained(181)})));
  EXPECT_TRUE(done(verify(sink_, trained(181), 2)));
  EXPECT_EQ(folder_contents(sink_).size(), 2);
}

TEST_F(Versions, ANewRunReplacesTheOld) {
  EXPECT_TRUE(done(run_job(3, sync_words(trained(0)) + Words{"--weight-version", "1"})));
  EXPECT_TRUE(done(verify(sink_, trained(0), 1)));
  EXPECT_TRUE(done(run_job(3, sync_words(trained(181)) + Words{"--weight-version", "2"})));
  EXPECT_TRUE(done(verify(sink_, trained(181), 2)));
  EXPECT_EQ(folder_contents(sink_).size(), 2);
}

TEST_F(Versions, ASmallerLayoutLeavesNothingOfALargerOne) {
  EXPECT_TRUE(done(run_job(
      5, {"sync", "--source", trained(0), "--inference", "tp=2,replicas=2", "--sink", "hdf5:" + sink_})));
  EXPECT_EQ(folder_contents(sink_).size(), 4);
  EXPECT_TRUE(done(run_job(3, sync_words(trained(1)) + Words{"--weight-version", "1"})));
  EXPECT_EQ(folder_contents(sink_).size(), 2);
  EXPECT_TRUE(done(verify(sink_, trained(1), 1)));
}

TEST_F(Versions, DefaultIsZero) {
  EXPECT_TRUE(done(run_job(3, sync_words(trained(0)))));
  EXPECT_TRUE(done(verify(sink_, trained(0), 0)));
}

TEST_F(Versions, DefaultIsTheCheckpointsOwn) {
  for (const std::string& source : {dir_ / "checkpoint.h5", dir_ / "checkpoint"}) {
    EXPECT_TRUE(
        done(run_plain({"convert", "--source", trained(0), "--output", source, "--weight-version", "42"})));
    EXPECT_TRUE(done(run_job(3, sync_words(source))));
    EXPECT_TRUE(done(verify(sink_, source, 42)));
    EXPECT_TRUE(done(run_job(3, sync_words(source) + Words{"--weight-version", "3"})));
    EXPECT_TRUE(done(verify(sink_, source, 3)));
  }
}

TEST_F(Versions, SeveralCheckpointsCountOnFromTheFirst) {
  // The same version twice, and one that goes backwards.
  Words sync{"sync", "--inference", "tp=2,ep=2", "--sink", "hdf5:" + (dir_ / "version-{version}")};
  for (const auto& [step, own] : {std::pair{0, "5"}, std::pair{1, "5"}, std::pair{181, "2"}}) {
    const std::string source = dir_ / ("step-" + std::to_string(step) + ".h5");
    EXPECT_TRUE(
        done(run_plain({"convert", "--source", trained(step), "--output", source, "--weight-version", own})));
    sync = sync + Words{"--source", source};
  }
  for (const int first : {5, 30}) {
    const Outcome outcome =
        run_job(3, first == 5 ? sync : sync + Words{"--weight-version", std::to_string(first)});
    EXPECT_TRUE(done(outcome));
    const auto said = [&](int step, const char* own, int number) {
      return "step-" + std::to_string(step) + ".h5 says " + own + " and is written as " +
             std::to_string(first + number);
    };
    EXPECT_TRUE(has(outcome.err, {said(1, "5", 1) + "; ", said(181, "2", 2)}));
    const auto folder = [&](int number) { return dir_ / ("version-" + std::to_string(first + number)); };
    EXPECT_TRUE(done(verify(folder(0), trained(0), first)));
    EXPECT_TRUE(done(verify(folder(1), trained(1), first + 1)));
    EXPECT_TRUE(done(verify(folder(2), trained(181), first + 2)));
  }
}

TEST_F(Versions, CheckpointsThatSayTheirOwnNumberNeedNoNote) {
  Words sync{"sync", "--inference", "tp=2,ep=2", "--sink", "hdf5:" + sink_};
  for (const char* own : {"5", "6"}) {
    const std::string source = dir_ / (std::string(own) + ".h5");
    EXPECT_TRUE(
        done(run_plain({"convert", "--source", trained(0), "--output", source, "--weight-version", own})));
    sync = sync + Words{"--source", source};
  }
  for (const Words& words : {sync, sync + Words{"--source", trained(1)}}) {
    const Outcome outcome = run_job(3, words);
    EXPECT_TRUE(done(outcome));
    EXPECT_EQ(outcome.err.find("is written as"), std::string::npos);
  }
}

TEST_F(Versions, StaleShards) {
  EXPECT_TRUE(done(run_job(3, sync_words(trained(0)) + Words{"--weight-version", "4"})));
  EXPECT_TRUE(refused(verify(sink_, trained(0), 5), 66, {sink_, "version 4", "5", "stale"}));
}

TEST_F(Versions, NoSinkWritesNothing) {
  EXPECT_TRUE(done(run_job(3, {"sync", "--source", trained(0), "--inference", "tp=2", "--sink", "none"})));
  EXPECT_TRUE(folder_contents(dir_.string()).empty());
}

}  // namespace
}  // namespace weightcast::test_support
