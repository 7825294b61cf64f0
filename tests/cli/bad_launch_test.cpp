#include <cmath>

#include "cli/cli.hpp"

namespace weightcast::test_support {
namespace {

using BadLaunch = CliTest;

TEST_F(BadLaunch, WithoutALauncher) {
  for (const Words& words : {sync_words(trained(0)), Words{"bench", "--model", model_folder("tiny-qwen3")}}) {
    EXPECT_TRUE(refused(run_plain(words), 64, {"without a launcher", "mpirun -n N", "srun --mpi=pmix"}));
  }
  EXPECT_FALSE(std::filesystem::exists(sink_));
}

TEST_F(BadLaunch, RanksWithDifferentOptions) {
  const Words words = sync_words(trained(0));
  const auto job = [&](const Words& first, const Words& others) {
    const Words all = words + first + Words{":", "-n", "2", WEIGHTCAST_BINARY} + others;
    return run(mpirun(1, Words{WEIGHTCAST_BINARY} + all));
  };
  EXPECT_TRUE(refused(job({"--bucket-size", "1MiB"}, words + Words{"--bucket-size", "2MiB"}), 64,
                      {"--bucket-size: rank 0 was given '1MiB', rank 1 '2MiB'", "command line"}));
  EXPECT_TRUE(refused(job({}, words + Words{"--no-verify"}), 64,
                      {"--no-verify: rank 0 was given 'false', rank 1 'true'", "mpirun -x"}));
  EXPECT_TRUE(refused(job({"--weight-version", "3"}, words), 64,
                      {"--weight-version: rank 0 was given '3', rank 1 nothing"}));
  EXPECT_TRUE(refused(job({}, {"bench", "--source", trained(0), "--inference", "tp=2,ep=2"}), 64,
                      {"the command: rank 0 was given 'sync', rank 1 'bench'"}));
  // What is each rank's own business may differ.
  EXPECT_TRUE(done(job({"--read-threads", "1"}, words)));
}

TEST_F(BadLaunch, LauncherOfAnotherMpi) {
  const Words in_the_line{"another MPI", "Open MPI's mpirun", "srun --mpi=pmix"};
  const Words words = sync_words(trained(0));
  EXPECT_TRUE(refused(run_plain(words, {{"PMI_RANK", "0"}, {"PMI_SIZE", "4"}}), 64, in_the_line));
  EXPECT_TRUE(refused(run_plain(words, {{"MPI_LOCALNRANKS", "4"}}), 64, in_the_line));
  EXPECT_TRUE(refused(run_plain(words, {{"MV2_COMM_WORLD_RANK", "0"}}), 64, in_the_line));
  // The other ranks leave the speaking to rank 0.
  const Outcome other = run_plain(words, {{"PMI_RANK", "3"}, {"PMI_SIZE", "4"}});
  EXPECT_EQ(other.exit_code, 64) << describe(other);
  EXPECT_EQ(other.err, "");
  EXPECT_FALSE(std::filesystem::exists(sink_));
}

TEST_F(BadLaunch, SrunWithoutPmix) {
  const Words in_the_line{"srun", "without PMIx", "srun --mpi=pmix"};
  const Words words = sync_words(trained(0));
  EXPECT_TRUE(
      refused(run_plain(words, {{"SLURM_STEP_NUM_TASKS", "4"}, {"SLURM_PROCID", "0"}}), 64, in_the_line));
  // Slurm's own PMI-2 sets variables of another MPI too; the remedy is still PMIx.
  EXPECT_TRUE(
      refused(run_plain(words, {{"SLURM_STEP_NUM_TASKS", "4"}, {"SLURM_PROCID", "0"}, {"PMI_RANK", "0"}}), 64,
              in_the_line));
  const Outcome other = run_plain(words, {{"SLURM_STEP_NUM_TASKS", "4"}, {"SLURM_PROCID", "2"}});
  EXPECT_EQ(other.exit_code, 64) << describe(other);
  EXPECT_EQ(other.err, "");
}

TEST_F(BadLaunch, WorldOfOne) {
  // The variables of Open MPI's mpirun, but no mpirun that this process could find: MPI starts it alone.
  const Outcome outcome =
      run_plain(sync_words(trained(0)), {{"OMPI_COMM_WORLD_SIZE", "4"}, {"OMPI_COMM_WORLD_RANK", "0"}});
  EXPECT_TRUE(refused(outcome, 64, {"4 tasks", "world of one", "mpirun"}));
  EXPECT_FALSE(std::filesystem::exists(sink_));
}

TEST_F(BadLaunch, AFirstRankThatDoesNotStart) {
  // The others wait for it where nobody can look at a clock, and one of them speaks in its place.
  const std::string late = R"([ "$OMPI_COMM_WORLD_RANK" != 0 ] || sleep 600; exec "$0" "$@")";
  const CommandLine command = mpirun(
      3, Words{"sh", "-c", late, WEIGHTCAST_BINARY} + sync_words(trained(0)) + Words{"--timeout", "2"});
  EXPECT_TRUE(refused(run(command), 76, {"rank 1: starting MPI", "has hung", "--timeout"}));
  EXPECT_FALSE(std::filesystem::exists(sink_));
}

TEST_F(BadLaunch, TooFewRanks) {
  put_old_shards();
  const auto before = folder_contents(sink_);
  EXPECT_TRUE(refused(run_job(2, sync_words(trained(0))), 64,
                      {"too few ranks", "need 3", "started 2", "--trainers", "--inference"}));
  EXPECT_TRUE(refused(run_job(1, sync_words(trained(0))), 64, {"too few ranks", "need 3", "started 1"}));
  EXPECT_EQ(folder_contents(sink_), before);
}

TEST_F(BadLaunch, TooManyRanks) {
  EXPECT_TRUE(refused(run_job(4, sync_words(trained(0))), 64,
                      {"too many ranks", "need 3", "started 4", "--trainers", "--inference"}));
  EXPECT_TRUE(refused(run_job(3, {"sync", "--colocate", "--source", trained(0), "--inference", "tp=2"}), 64,
                      {"too many ranks", "need 2", "started 3"}));
  EXPECT_TRUE(refused(run_job(3, {"bench", "--model", model_folder("tiny-qwen3")}), 64,
                      {"too many ranks", "need 2", "started 3"}));
  EXPECT_FALSE(std::filesystem::exists(sink_));
}

TEST_F(BadLaunch, NcclWithoutItsHardware) {
  EXPECT_TRUE(refused(run_job(3, sync_words(trained(0)) + Words{"--transport", "nccl"}), 64,
                      {"--transport nccl", "--transport mpi"}));
  EXPECT_FALSE(std::filesystem::exists(sink_));
}

TEST_F(BadLaunch, DirectWaysWithoutGpus) {
  for (const Words& words :
       {sync_words(trained(0)), Words{"bench", "--model", model_folder("tiny-qwen3"), "--inference",
                                      "replicas=2", "--iterations", "1"}}) {
    const Words over_mpi = words + Words{"--transport", "mpi", "--direct"};
    EXPECT_TRUE(refused(run_job(3, over_mpi + Words{"always"}), 64, {"--direct always: over MPI"}));
    EXPECT_TRUE(refused(run_job(3, over_mpi + Words{"sometimes"}), 64,
                        {"--direct sometimes", "never, auto, always"}));
    EXPECT_TRUE(done(run_job(3, over_mpi + Words{"auto", "--json", dir_ / "report.json"})));
    EXPECT_TRUE(read_json(dir_ / "report.json").at("ways").is_null());
  }
}

TEST_F(BadLaunch, LessMemoryThanThePlanNeeds) {
  // One layer of three matrices of 16 TiB: more than any machine has, and planned at once.
  auto config = read_json(model_folder("tiny-qwen3") + "/config.json");
  config["hidden_size"] = 1 << 21;
  config["intermediate_size"] = 1 << 22;
  put_file(dir_ / "config.json", config.dump());
  const std::string json = dir_ / "report.json";
  const Outcome outcome = run_job(
      3, {"bench", "--model", dir_ / "config.json", "--layers", "1", "--inference", "tp=2", "--json", json});
  EXPECT_TRUE(refused(outcome, 74,
                      {"memory", "need 96.0 TiB", "available", "more nodes", "--bucket-size", "--layers"}));
  EXPECT_EQ(read_json(json).at("status"), "input/output");
}

TEST_F(BadLaunch, LessAddressSpaceThanThePlanNeeds) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the address sanitizer takes more than any limit";
#endif
  // 4 GiB of address space, and staging of 3 × 2 GiB for a model that fills such buckets.
  const std::string limited = R"(ulimit -v 4194304; exec "$0" "$@")";
  const CommandLine command =
      mpirun(3, {"sh", "-c", limited, WEIGHTCAST_BINARY, "bench", "--model", model_folder("Qwen3-30B-A3B"),
                 "--layers", "3", "--inference", "tp=2", "--bucket-size", "2GiB", "--iterations", "1"});
  EXPECT_TRUE(refused(run(command), 74, {"memory", "available", "--bucket-size"}));
}

TEST_F(BadLaunch, LessAddressSpaceThanAPlainCommandNeeds) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the address sanitizer takes more than any limit";
#endif
  // Memory runs out at one place after the other until it is enough.
  constexpr int kNoLibraries = 127;
  int refusals = 0;
  for (double kilobytes = 30'000; kilobytes < 4e6; kilobytes *= 1.2) {
    CommandLine command;
    command.words = {"sh",
                     "-c",
                     "ulimit -v " + std::to_string(std::lround(kilobytes)) + R"(; exec "$0" "$@")",
                     WEIGHTCAST_BINARY,
                     "plan",
                     "--model",
                     model_folder("Qwen3-30B-A3B"),
                     "--trainers",
                     "64",
                     "--inference",
                     "tp=4,replicas=16",
                     "--segments",
                     "--json",
                     dir_ / "plan.json"};
    const Outcome outcome = run(command);
    if (outcome.exit_code == kNoLibraries) continue;
    if (outcome.exit_code == 0) break;
    EXPECT_TRUE(refused(outcome, 74, {"memory", "ulimit -v"})) << kilobytes;
    ++refusals;
  }
  EXPECT_GT(refusals, 0);
}

}  // namespace
}  // namespace weightcast::test_support
