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

}  // namespace

}  // namespace weightcast::test_support
