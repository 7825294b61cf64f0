#include <gtest/gtest.h>

#include <string>

#include "tampered_job.hpp"

// A rank fails amid an update, when the others already wait for its buckets.
namespace weightcast::test_support {

namespace {

class FailureTest : public CliTest, public ::testing::WithParamInterface<int> {};

TEST_P(FailureTest, OfATrainersDiskIsOneLineAndLeavesTheOldShards) {
  put_old_shards();
  const auto before = folder_contents(sink_);
  const Words words = sync_words(trained(0)) + Words{"--trainers", "2", "--bucket-size", "64KiB"};
  // Late enough that the ranks are amid the stream; rank 0 also reads the headers.
  const Outcome outcome = run_tampered_job(
      4, words,
      {{"FAIL_RANK", std::to_string(GetParam())}, {"FAIL_READ", "10"}, {"FAIL_LEAST_BYTES", "2048"}});
  const std::string rank = "rank " + std::to_string(GetParam()) + " (";
  EXPECT_TRUE(refused(outcome, 74, {rank, trained(0), "(model.", "Input/output error"}));
  EXPECT_TRUE(folder_contents(sink_) == before);
}

INSTANTIATE_TEST_SUITE_P(Trainer, FailureTest, ::testing::Values(0, 1));

}  // namespace

}  // namespace weightcast::test_support
