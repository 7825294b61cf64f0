#include <gtest/gtest.h>

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <string>

#include "tampered_job.hpp"

// A rank cannot put its shard in place, or is told to stop just then.
namespace weightcast::test_support {

namespace {

struct Fault {
  const char* call;
  int rank;
  int error;
  const char* words;
};

class FaultyRename : public CliTest {
 protected:
  /// A job that writes version 2, in which one call on a shard goes as the variables say.
  Outcome run_faulty(Variables variables) const {
    variables["FAIL_PATH"] = "/rank-";
    return run_tampered_job(3, sync_words(source_) + Words{"--weight-version", "2"}, variables);
  }

  /// Expects the new shards, whole, and nothing beside them.
  void expect_new_shards() const {
    EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", source_, "--weight-version", "2"})));
    EXPECT_EQ(folder_contents(sink_).size(), 2);
  }

 private:
  std::string source_ = trained(0);
};

class RenameOfOneRank : public FaultyRename, public ::testing::WithParamInterface<Fault> {};

TEST_P(RenameOfOneRank, FailsAndTheOldShardsOfAllStay) {
  const Fault fault = GetParam();
  put_old_shards();
  const auto before = folder_contents(sink_);
  const Outcome outcome = run_faulty({{"FAIL_RANK", std::to_string(fault.rank)},
                                      {"FAIL_CALL", fault.call},
                                      {"FAIL_ERRNO", std::to_string(fault.error)}});
  const std::string rank = "rank " + std::to_string(fault.rank) + " (";
  EXPECT_TRUE(refused(outcome, 74, {rank, sink_ + "/rank-", fault.words, "the previous version is intact"}));
  EXPECT_TRUE(folder_contents(sink_) == before);
}

INSTANTIATE_TEST_SUITE_P(OfCalls, RenameOfOneRank,
                         ::testing::Values(Fault{"rename", 1, EIO, "Input/output error"},
                                           Fault{"rename", 2, ENOSPC, "No space left"},
                                           Fault{"link", 1, ENOSPC, "No space left"},
                                           Fault{"link", 2, EIO, "Input/output error"}));

TEST_F(FaultyRename, LeavesNothingWhereNothingWas) {
  const Outcome outcome = run_faulty({{"FAIL_RANK", "2"}, {"FAIL_CALL", "rename"}});
  EXPECT_TRUE(refused(outcome, 74, {"rank 2 (", "Input/output error", "the previous version is intact"}));
  EXPECT_FALSE(std::filesystem::exists(sink_));
}

TEST_F(FaultyRename, IsNotNeededWhereAFileHasOneNameOnly) {
  put_old_shards();
  EXPECT_TRUE(
      done(run_faulty({{"FAIL_RANK", "1"}, {"FAIL_CALL", "link"}, {"FAIL_ERRNO", std::to_string(EPERM)}})));
  expect_new_shards();
}

TEST_F(FaultyRename, SignalAmidTheRenamesIsSaidWithTheNewVersion) {
  put_old_shards();
  const Outcome outcome =
      run_faulty({{"FAIL_RANK", "2"}, {"FAIL_CALL", "rename"}, {"FAIL_SIGNAL", std::to_string(SIGTERM)}});
  EXPECT_TRUE(refused(outcome, 75, {"stopped by", "version 2 is in place"}));
  expect_new_shards();
}

/// Jobs that break off amid the renames, and the next one, which fails.
class BrokenRename : public FaultyRename {
 protected:
  void put_version_1(const std::string& inference, int ranks) const {
    ASSERT_TRUE(done(run_job(ranks + 1, words(inference, "1"))));
  }

  Words words(const std::string& inference, const std::string& version) const {
    return {"sync",
            "--source",
            trained(version == "1" ? 1 : 0),
            "--inference",
            inference,
            "--sink",
            (version == "2" ? format_of_2_ : "hdf5:") + sink_,
            "--weight-version",
            version};
  }

  std::string format_of_2_ = "hdf5:";

  /// Version 2 with another layout; one call of one rank goes as the variables say.
  Outcome break_off(const std::string& inference, int ranks, Variables variables,
                    const Words& more = {}) const {
    variables.try_emplace("FAIL_PATH", "/rank-");
    return run_tampered_job(ranks + 1, words(inference, "2") + more, variables);
  }

  /// A job that cannot write anything, but clears the folder.
  void fail_next() const {
    CommandLine command = mpirun(
        3, Words{"sh", "-c", "ulimit -f 256; exec \"$0\" \"$@\"", WEIGHTCAST_BINARY} + words("tp=2", "3"));
    command.environment["OMPI_MCA_btl"] = "self,tcp";
    EXPECT_TRUE(refused(run(command), 74, {sink_ + "/rank-", "File too large"}));
  }

  void expect_version_1(std::size_t files) const {
    EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", trained(1), "--weight-version", "1"})));
    EXPECT_EQ(folder_contents(sink_).size(), files);
  }
};

const std::string kKill = std::to_string(SIGKILL);

TEST_F(BrokenRename, OfALargerLayoutIsUndone) {
  put_version_1("tp=2", 2);
  EXPECT_NE(
      break_off("tp=4", 4, {{"FAIL_RANK", "1"}, {"FAIL_CALL", "rename"}, {"FAIL_SIGNAL", kKill}}).exit_code,
      0);
  fail_next();
  expect_version_1(2);
}

TEST_F(BrokenRename, OfASmallerLayoutIsUndone) {
  put_version_1("tp=4", 4);
  // The first shard that goes.
  EXPECT_NE(
      break_off(
          "tp=2", 2,
          {{"FAIL_RANK", "1"}, {"FAIL_CALL", "unlink"}, {"FAIL_PATH", "/.rank-2"}, {"FAIL_SIGNAL", kKill}})
          .exit_code,
      0);
  fail_next();
  expect_version_1(4);
}

TEST_F(BrokenRename, OfTheOtherFormatIsUndone) {
  put_version_1("tp=4", 4);
  format_of_2_ = "safetensors:";
  // A rank that has replaced its HDF5 shard, and the one before it, of which another one has.
  for (const char* path : {"/.rank-1.h5", "/rank-1.safetensors"}) {
    const bool hdf5 = std::string(path).ends_with(".h5");
    EXPECT_NE(break_off("tp=2", 2,
                        {{"FAIL_RANK", "2"},
                         {"FAIL_CALL", hdf5 ? "unlink" : "rename"},
                         {"FAIL_PATH", path},
                         {"FAIL_SIGNAL", kKill}})
                  .exit_code,
              0);
    fail_next();
    expect_version_1(4);
  }
}

TEST_F(BrokenRename, BeforeAnOldShardHasLostItsNamesIsUndone) {
  put_version_1("tp=2", 2);
  EXPECT_NE(
      break_off(
          "tp=2", 2,
          {{"FAIL_RANK", "2"}, {"FAIL_CALL", "unlink"}, {"FAIL_PATH", "/.rank-1"}, {"FAIL_SIGNAL", kKill}})
          .exit_code,
      0);
  fail_next();
  expect_version_1(2);
}

TEST_F(BrokenRename, OfANewFolderIsUndone) {
  EXPECT_NE(
      break_off("tp=2", 2, {{"FAIL_RANK", "1"}, {"FAIL_CALL", "rename"}, {"FAIL_SIGNAL", kKill}}).exit_code,
      0);
  fail_next();
  EXPECT_TRUE(folder_contents(sink_).empty());
}

TEST_F(BrokenRename, OfARankThatIsStoppedIsNotCalledUntouched) {
  put_version_1("tp=2", 2);
  const Outcome outcome = break_off(
      "tp=2", 2, {{"FAIL_RANK", "2"}, {"FAIL_CALL", "link"}, {"FAIL_SIGNAL", std::to_string(SIGSTOP)}},
      {"--timeout", "15"});
  EXPECT_TRUE(refused(outcome, 76, {"renaming the shards of version 2", "may hold shards of two versions"}));
  fail_next();
  expect_version_1(2);
}

TEST_F(BrokenRename, WhatCannotBePutBackTheNextJobPutsBack) {
  put_version_1("tp=2", 2);
  // Rank 2 cannot take its name; rank 1 cannot give it back.
  const Outcome outcome = break_off(
      "tp=2", 2,
      {{"FAIL_RANK", "2"}, {"FAIL_CALL", "rename"}, {"FAIL_ALSO_RANK", "1"}, {"FAIL_ALSO_NUMBER", "1"}});
  EXPECT_TRUE(refused(outcome, 74, {"cannot put", sink_ + "/rank-0.h5", "Input/output error"}));
  fail_next();
  expect_version_1(2);
}

/// Experts of shards that move, of which a rank cannot put its file in place, or dies then.
class FaultyRebalance : public CliTest {
 protected:
  void SetUp() override {
    ASSERT_TRUE(done(run_job(3, sync_words(trained(1)))));
    put_file(there_, map(1, "[6, 0, 2, 7, 1, 3, 4, 5]"));
    put_file(back_, map(2, "[0, 1, 2, 3, 4, 5, 6, 7]"));
  }

  static std::string map(int epoch, const std::string& row) {
    return R"({"expert_map": 1, "epoch": )" + std::to_string(epoch) +
           R"(, "layers": 3, "experts": 8, "slots": 8, "ep": 2, "experts_of_slots": [)" + row + ", " + row +
           ", " + row + "]}";
  }

  Words words(const std::string& from, const std::string& to) const {
    return {"rebalance", "--from", from, "--to", to, "--model", trained(1), "--sink", "hdf5:" + sink_};
  }

  std::string there_ = dir_ / "there.json";
  std::string back_ = dir_ / "back.json";
};

TEST_F(FaultyRebalance, LeavesTheShardsWhereARenameFails) {
  const auto before = folder_contents(sink_);
  const Outcome outcome = run_tampered_job(
      2, words("contiguous", there_), {{"FAIL_RANK", "1"}, {"FAIL_CALL", "rename"}, {"FAIL_PATH", "/rank-"}});
  EXPECT_TRUE(refused(outcome, 74, {"rank 1 (", "the previous version is intact"}));
  EXPECT_TRUE(folder_contents(sink_) == before);
}

TEST_F(FaultyRebalance, IsMadeWholeByTheNextWhereARankDies) {
  for (const char* rank : {"0", "1"}) {
    SCOPED_TRACE(rank);
    const Outcome outcome = run_tampered_job(2, words("contiguous", there_),
                                             {{"FAIL_RANK", rank},
                                              {"FAIL_CALL", "rename"},
                                              {"FAIL_PATH", "/rank-"},
                                              {"FAIL_SIGNAL", std::to_string(SIGKILL)}});
    EXPECT_NE(outcome.exit_code, 0);
    // As if the first one had not been: the same maps, the same shards.
    ASSERT_TRUE(done(run_job(2, words("contiguous", there_))));
    ASSERT_TRUE(done(run_job(2, words(there_, back_))));
    EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", trained(1), "--expert-map", back_})));
    // Shards of a later map are not replaced by those of an earlier one.
    std::filesystem::remove_all(sink_);
    ASSERT_TRUE(done(run_job(3, sync_words(trained(1)))));
  }
}

}  // namespace

}  // namespace weightcast::test_support
