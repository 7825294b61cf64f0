#include <set>
#include <sstream>

#include "cli/cli.hpp"
#include "cli/slow_disk.hpp"
#include "sys/hdf5.hpp"

namespace weightcast::test_support {
namespace {

using namespace std::chrono_literals;

class ReportTest : public CliTest {
 protected:
  std::string json_ = dir_ / "report.json";
};

constexpr std::int64_t kTensors = 102;
constexpr std::int64_t kModelBytes = 1566144;

TEST_F(ReportTest, JsonHasWhatTheContractSays) {
  const Outcome outcome = run_job(
      3, sync_words(trained(0)) + Words{"--weight-version", "5", "--json", json_, "--bucket-size", "256KiB"});
  EXPECT_TRUE(done(outcome));
  const auto report = read_json(json_);
  EXPECT_TRUE(has(report.at("weightcast"), {"weightcast 0.1.0"}));
  EXPECT_EQ(report.at("command"), "sync");
  EXPECT_EQ(report.at("status"), "done");
  EXPECT_EQ(report.at("weight_version"), 5);
  EXPECT_EQ(report.at("model").at("tensors"), kTensors);
  EXPECT_EQ(report.at("model").at("bytes"), kModelBytes);
  // Alignment adds a little.
  EXPECT_GE(report.at("wire_bytes"), kModelBytes);
  EXPECT_LE(report.at("wire_bytes"), kModelBytes * 1.02);
  EXPECT_GE(report.at("buckets"), kModelBytes / (256 << 10));
  // To both, to the first and to the second.
  EXPECT_EQ(report.at("routes"), 3);
  EXPECT_LE(report.at("staging_bytes_per_rank"), 3 * (256 << 10));
  EXPECT_TRUE(report.at("verified").get<bool>());
  EXPECT_TRUE(report.at("error").is_null());
  for (const char* name : {"startup", "plan", "read", "pack", "transport", "unpack", "verify", "update"}) {
    EXPECT_GE(report.at("seconds").at(name).get<double>(), 0.0) << name;
  }
  const double update = report.at("seconds").at("update");
  EXPECT_GT(update, 0.0);
  EXPECT_NEAR(report.at("rate_gb_s"), kModelBytes / update / 1e9, 1e-6);
  EXPECT_GT(report.at("limit").at("gb_s"), 0.0);
  EXPECT_GT(report.at("limit").at("achieved"), 0.0);
  EXPECT_FALSE(report.at("limit").at("what").get<std::string>().empty());
}

TEST_F(ReportTest, RanksHaveRolesAndPlaces) {
  EXPECT_TRUE(done(run_job(6, {"sync", "--source", trained(0), "--trainers", "2", "--inference",
                               "tp=2,ep=2,replicas=2", "--json", json_})));
  const auto ranks = read_json(json_).at("ranks");
  ASSERT_EQ(ranks.size(), 6);
  for (std::size_t rank = 0; rank < 6; ++rank) {
    EXPECT_EQ(ranks[rank].at("rank"), rank);
    EXPECT_FALSE(ranks[rank].at("host").get<std::string>().empty());
    EXPECT_EQ(ranks[rank].at("device"), "cpu");
  }
  EXPECT_EQ(ranks[0].at("role"), "trainer");
  EXPECT_EQ(ranks[1].at("role"), "trainer");
  EXPECT_EQ(ranks[2].at("role"), "inference 0 (replica 0 pp 0 tp 0 ep 0)");
  EXPECT_EQ(ranks[5].at("role"), "inference 3 (replica 1 pp 0 tp 1 ep 1)");
}

TEST_F(ReportTest, ColocatedRanksAreBoth) {
  EXPECT_TRUE(done(
      run_job(2, {"sync", "--colocate", "--source", trained(0), "--inference", "tp=2", "--json", json_})));
  EXPECT_EQ(read_json(json_).at("ranks")[1].at("role"), "trainer + inference 1 (replica 0 pp 0 tp 1 ep 0)");
}

TEST_F(ReportTest, OneEntryAnUpdate) {
  EXPECT_TRUE(done(run_job(2, {"sync", "--source", trained(0), "--source", trained(1), "--weight-version",
                               "40", "--json", json_})));
  const auto report = read_json(json_);
  EXPECT_EQ(report.at("weight_version"), 41);
  const auto& updates = report.at("updates");
  ASSERT_EQ(updates.size(), 2);
  EXPECT_EQ(updates[0].at("weight_version"), 40);
  EXPECT_EQ(updates[0].at("source"), trained(0));
  EXPECT_EQ(updates[1].at("weight_version"), 41);
  EXPECT_EQ(updates[1].at("source"), trained(1));
  EXPECT_EQ(updates[1].at("seconds"), report.at("seconds"));
}

TEST_F(ReportTest, ReportOnStdoutAndLogOnStderr) {
  const Outcome outcome =
      run_job(3, sync_words(trained(0)) + Words{"--weight-version", "5", "--progress", "never"});
  EXPECT_TRUE(done(outcome));
  EXPECT_EQ(outcome.err, "");
  EXPECT_TRUE(
      has(outcome.out, {"weightcast 0.1.0", "sync", "Qwen3MoeForCausalLM", "102 tensors", "1.49 MiB",
                        "1 trainer,", "tp 2, ep 2", "transport mpi", "3 routes", "inference 1", "verified"}));
  // Lines of the head start with #, so that the rest is a table of numbers: one row an update.
  std::istringstream lines(outcome.out);
  std::vector<std::string> rows;
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with('#')) rows.push_back(line);
  }
  ASSERT_EQ(rows.size(), 1);
  std::istringstream row(rows.front());
  std::int64_t version = 0;
  row >> version;
  EXPECT_EQ(version, 5);
  EXPECT_TRUE(rows.front().ends_with(" yes")) << rows.front();
  // What became of it is the last line.
  EXPECT_TRUE(has(outcome.out.substr(outcome.out.rfind("\n#")),
                  {"# 2 shards, ", " MiB, in " + sink_ + ", verified: "}));
}

TEST_F(ReportTest, TablesFitEightyColumns) {
  const Outcome sync = run_job(
      10, {"sync", "--source", trained(0), "--alloc", "sglang:d2p1t2+megatron:(attn:d1p3t2c1|ffn:d1p3t1e2)",
           "--sink", "hdf5:" + sink_, "--weight-version", "123456"});
  EXPECT_TRUE(done(sync));
  // Names have no place to be broken at: those of files, and of the libraries in the first line.
  const auto without = [](std::string text, const std::string& name) {
    for (std::size_t at = text.find(name); at != std::string::npos; at = text.find(name)) {
      text.erase(at, name.size());
    }
    return text.substr(text.find('\n'));
  };
  EXPECT_EQ(too_wide(without(without(sync.out, trained(0)), sink_)), "");
  EXPECT_TRUE(has(sync.out, {"# version", "slowest  verified", "\n   123456 "}));
  const std::string model = model_folder("tiny-qwen3-moe");
  const Outcome bench = run_job(3, {"bench", "--model", model, "--inference", "tp=2", "--iterations", "1"});
  EXPECT_TRUE(done(bench));
  EXPECT_EQ(too_wide(without(bench.out, model)), "");
  // Its updates are numbered; their version and size are always the same.
  EXPECT_TRUE(has(bench.out, {"\nupdate ", "of wire  verified\n1 ", "\n2 "}));
}

TEST_F(ReportTest, UpdatesOfAJobAreSummedUp) {
  const Outcome several =
      run_job(3, {"sync", "--source", trained(0), "--source", trained(1), "--inference", "tp=2"});
  EXPECT_TRUE(done(several));
  EXPECT_TRUE(
      has(several.out, {"\n# 2 updates: 2 inference ranks, ", "which ends with the job, verified: "}));
}

TEST_F(ReportTest, ReportsForProgramsOnStdout) {
  const Outcome sync = run_job(3, sync_words(trained(0)) + Words{"--json", "-"});
  EXPECT_TRUE(done(sync));
  EXPECT_EQ(nlohmann::json::parse(sync.out).at("status"), "done");
  EXPECT_TRUE(has(sync.err, {"# version", "# 2 shards"}));
  const Outcome plan = run_plain({"plan", "--source", trained(0), "--json", "-"});
  EXPECT_TRUE(done(plan));
  EXPECT_EQ(nlohmann::json::parse(plan.out).at("model").at("tensors"), kTensors);
  EXPECT_TRUE(has(plan.err, {"busiest sender"}));
  // Of a failure, too.
  const Outcome failure = run_plain({"verify", dir_ / "absent", "--source", trained(0), "--json", "-"});
  EXPECT_TRUE(refused(failure, 74, {"absent"}));
  EXPECT_EQ(nlohmann::json::parse(failure.out).at("status"), "input/output");
  EXPECT_TRUE(refused(run_job(3, sync_words(trained(0)) + Words{"--json", "-", "--trace", "-"}), 64,
                      {"--trace -", "--json -"}));
  EXPECT_FALSE(std::filesystem::exists("-"));
}

TEST_F(ReportTest, PhasesThatTakeLongAreSaid) {
  const Outcome sync = run(slow_disk_job(3, sync_words(trained(0)), "/.rank-1.h5.", 3s));
  EXPECT_TRUE(done(sync));
  EXPECT_TRUE(has(sync.err, {"weightcast: writing shards, 2 s\n"}));
  CommandLine convert = plain_command({"convert", "--source", trained(0), "--output", dir_ / "copy.h5"},
                                      {{"LD_PRELOAD", WEIGHTCAST_SLOW_DISK},
                                       {"SLOW_DISK_FILE", "/.copy.h5."},
                                       {"SLOW_DISK_MILLISECONDS", "3000"}});
  const Outcome flushed = run(convert);
  EXPECT_TRUE(done(flushed));
  EXPECT_TRUE(has(flushed.err, {"weightcast: flushing " + (dir_ / "copy.h5") + ", 2 s\n"}));
  // Who wants none gets none.
  convert.words.push_back("-q");
  EXPECT_EQ(run(convert).err, "");
}

TEST_F(ReportTest, InspectSumsUpAFolderOfShards) {
  EXPECT_TRUE(done(run_job(3, sync_words(trained(0)) + Words{"--weight-version", "9"})));
  const Outcome inspect = run_plain({"inspect", sink_, "--json", json_});
  EXPECT_TRUE(done(inspect));
  EXPECT_TRUE(has(inspect.out, {"2 shards of version 9, ", "1 replica × pp 1 × tp 2, ep 2, names of sglang",
                                "rank-0.h5", "rank-1.h5", "inspect " + sink_ + "/rank-0.h5"}));
  const auto report = read_json(json_);
  EXPECT_EQ(report.at("weight_version"), 9);
  ASSERT_EQ(report.at("shards").size(), 2);
  EXPECT_EQ(report.at("bytes"), report.at("shards")[0].at("bytes").get<std::int64_t>() +
                                    report.at("shards")[1].at("bytes").get<std::int64_t>());
  // Of two updates they are nothing together.
  EXPECT_TRUE(done(run_job(3, {"sync", "--source", trained(0), "--inference", "tp=2,ep=2", "--sink",
                               "hdf5:" + (dir_ / "other")})));
  std::filesystem::copy_file(dir_ / "other/rank-1.h5", sink_ + "/rank-1.h5",
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_TRUE(refused(run_plain({"inspect", sink_}), 65, {sink_, "mixed shards"}));
}

TEST_F(ReportTest, NoVerifyIsSaid) {
  const Outcome outcome = run_job(3, sync_words(trained(0)) + Words{"--no-verify", "--json", json_});
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {" no\n", ", not verified: "}));
  EXPECT_FALSE(read_json(json_).at("verified").get<bool>());
  EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", trained(0)})));
}

TEST_F(ReportTest, FailureIsInTheJsonToo) {
  const Outcome outcome =
      run_job(3, {"sync", "--source", dir_ / "absent", "--inference", "tp=2", "--json", json_});
  EXPECT_TRUE(refused(outcome, 74, {dir_ / "absent"}));
  const auto report = read_json(json_);
  EXPECT_EQ(report.at("status"), "input/output");
  EXPECT_EQ(report.at("command"), "sync");
  EXPECT_EQ("weightcast: error: " + report.at("error").get<std::string>(), error_lines(outcome.err).front());
  EXPECT_FALSE(report.at("verified").get<bool>());
  EXPECT_TRUE(report.at("updates").empty());
}

TEST_F(ReportTest, AnEarlierReportDoesNotPassForThisRuns) {
  EXPECT_TRUE(done(run_job(3, sync_words(trained(0)))));
  const Words verify{"verify", sink_, "--json", json_, "--source"};
  EXPECT_TRUE(done(run_plain(verify + Words{trained(0)})));
  const Outcome outcome = run_plain(verify + Words{trained(1)});
  EXPECT_EQ(outcome.exit_code, 66);
  const auto report = read_json(json_);
  EXPECT_EQ(report.at("command"), "verify");
  EXPECT_EQ(report.at("status"), "verification failed");
  EXPECT_EQ("weightcast: error: " + report.at("error").get<std::string>(), error_lines(outcome.err).front());
}

TEST_F(ReportTest, NoOtherFileIsTakenForAReport) {
  const std::string weights = dir_ / "model.safetensors";
  std::filesystem::copy(trained(0) + "/model.safetensors", weights);
  EXPECT_TRUE(refused(run_plain({"inspect", "--json", weights}), 64, {"--json " + weights, "no report"}));
  EXPECT_TRUE(refused(run_job(3, sync_words(trained(0)) + Words{"--trace", weights}), 64,
                      {"--trace " + weights, "no report"}));
  EXPECT_EQ(std::filesystem::file_size(weights),
            std::filesystem::file_size(trained(0) + "/model.safetensors"));
}

TEST_F(ReportTest, AFileThatWasRefusedIsNotWrittenWhoeverFails) {
  const std::string config = dir_ / "config.json";
  const std::string precious = "{\n  \"architectures\": [\"Qwen3ForCausalLM\"]\n}\n";
  put_file(config, precious);
  const auto refuses = [&](const Outcome& outcome, const Words& words) {
    EXPECT_TRUE(refused(outcome, 64, words));
    EXPECT_EQ(get_file(config), precious);
  };
  for (const char* option : {"--json", "--trace"}) {
    refuses(run_job(3, sync_words(trained(0)) + Words{option, config}), {option, config, "no report"});
  }
  // A rank on another node has another command line.
  refuses(run_job(1, sync_words(trained(0)) +
                         Words{"--json", config, ":", "-n", "2", WEIGHTCAST_BINARY, "sync", "--bogus"}),
          {"--json", config, "no report"});
  refuses(
      run_job(1, Words{"bench", "--layouts", "--model", model_folder("tiny-qwen3-moe"), "--json", config}),
      {"--json", config, "no report"});
  refuses(run_plain({"plan", "--model", model_folder("tiny-qwen3"), "--json", config}),
          {config, "no report"});
  refuses(run_plain({"inspect", dir_ / "absent", "--json", config}), {config, "no report"});
  refuses(run_plain({"verify", dir_ / "absent", "--source", trained(0), "--json", config}),
          {config, "no report"});
  EXPECT_FALSE(std::filesystem::exists(sink_));
}

TEST_F(ReportTest, AWrongCommandLineOfAnotherRankIsInTheJson) {
  EXPECT_TRUE(refused(run_job(1, sync_words(trained(0)) + Words{"--json", json_, ":", "-n", "2",
                                                                WEIGHTCAST_BINARY, "sync", "--bogus"}),
                      64, {"--bogus"}));
  const auto report = read_json(json_);
  EXPECT_EQ(report.at("status"), "usage");
  EXPECT_TRUE(has(report.at("error"), {"--bogus"}));
}

TEST_F(ReportTest, JsonAndTraceAreTwoFiles) {
  std::filesystem::create_symlink(json_, dir_ / "link.json");
  EXPECT_TRUE(done(run_plain({"inspect", trained(0), "--json", json_})));
  for (const std::string& trace : {json_, dir_ / "link.json", dir_ / "./report.json"}) {
    EXPECT_TRUE(refused(run_job(3, sync_words(trained(0)) + Words{"--json", json_, "--trace", trace}), 64,
                        {"--trace " + trace, "--json", "name another"}));
    EXPECT_EQ(read_json(json_).at("status"), "usage");
  }
  EXPECT_TRUE(
      done(run_job(3, sync_words(trained(0)) + Words{"--json", "/dev/null", "--trace", "/dev/null"})));
}

TEST_F(ReportTest, ARunningJobHasAReportThatSaysSo) {
  ASSERT_EQ(std::system(("mkfifo " + (dir_ / "pipe")).c_str()), 0);
  Process job(job_command(3, sync_words(trained(0)) + Words{"--json", json_, "--trace", dir_ / "pipe"}));
  // It waits for a reader of its trace.
  ASSERT_TRUE(job.wait_for_output("\n        0 "));
  auto report = read_json(json_);
  EXPECT_EQ(report.at("command"), "sync");
  EXPECT_EQ(report.at("status"), "running");
  EXPECT_FALSE(nlohmann::json::parse(get_file(dir_ / "pipe")).at("traceEvents").empty());
  EXPECT_TRUE(done(job.wait()));
  report = read_json(json_);
  EXPECT_EQ(report.at("status"), "done");
}

TEST_F(ReportTest, AReportThatCannotBeWrittenIsSaidBeforeAnythingMoves) {
  put_old_shards();
  const auto before = folder_contents(sink_);
  for (const char* option : {"--json", "--trace"}) {
    EXPECT_TRUE(refused(run_job(3, sync_words(trained(0)) + Words{option, dir_ / "no/folder"}), 74,
                        {std::string(option) + " " + (dir_ / "no/folder")}));
    EXPECT_EQ(folder_contents(sink_), before);
  }
}

TEST_F(ReportTest, FailureOfTheSecondUpdateKeepsTheFirst) {
  put_file(dir_ / "shards-1", "no folder");
  const Outcome outcome = run_job(2, {"sync", "--source", trained(0), "--source", trained(1), "--sink",
                                      "hdf5:" + (dir_ / "shards-{version}"), "--json", json_});
  EXPECT_TRUE(refused(outcome, 74, {dir_ / "shards-1"}));
  const auto report = read_json(json_);
  EXPECT_EQ(report.at("status"), "input/output");
  ASSERT_EQ(report.at("updates").size(), 1);
  EXPECT_EQ(report.at("updates")[0].at("source"), trained(0));
  EXPECT_EQ(report.at("weight_version"), 0);
}

TEST_F(ReportTest, Bench) {
  const Outcome outcome = run_job(3, {"bench", "--model", model_folder("tiny-qwen3-moe"), "--inference",
                                      "tp=2", "--iterations", "2", "--bucket-size", "1MiB", "--json", json_});
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {"Qwen3MoeForCausalLM", "MPI_Ibcast"}));
  const auto report = read_json(json_);
  EXPECT_EQ(report.at("command"), "bench");
  EXPECT_EQ(report.at("status"), "done");
  EXPECT_GT(report.at("rate_gb_s"), 0.0);
  EXPECT_GT(report.at("limit").at("achieved"), 0.0);
  EXPECT_FALSE(report.at("measured").empty());
  for (const auto& measured : report.at("measured")) EXPECT_GT(measured.at("gb_s"), 0.0) << measured.dump();
}

TEST_F(ReportTest, BenchFromFiles) {
  const std::string hdf5 = dir_ / "model.h5";
  EXPECT_TRUE(done(run_plain({"convert", "--source", trained(0), "--output", hdf5})));
  for (const std::string& source : {trained(0), hdf5}) {
    for (const Words& roles : {Words{"--trainers", "2"}, Words{"--colocate"}}) {
      const int ranks = roles.size() == 2 ? 4 : 2;
      const Outcome outcome =
          run_job(ranks, Words{"bench", "--source", source, "--inference", "tp=2", "--iterations", "2",
                               "--bucket-size", "100KiB", "--read-threads", "2", "--json", json_} +
                             roles);
      EXPECT_TRUE(done(outcome));
      EXPECT_TRUE(has(outcome.out, {"2 threads", "reading alone", "sending alone", "one after the other"}));
      const auto report = read_json(json_);
      EXPECT_EQ(report.at("updates")[0].at("source"), source);
      std::set<std::string> first_words;
      for (const auto& measured : report.at("measured")) {
        EXPECT_EQ(measured.at("seconds").size(), 2) << measured.dump();
        EXPECT_GT(measured.at("gb_s"), 0.0) << measured.dump();
        const auto what = measured.at("what").get<std::string>();
        first_words.insert(what.substr(0, what.find(' ')));
      }
      EXPECT_EQ(first_words.count("HDF5"), source == hdf5 ? 1 : 0);
      for (const char* word : {"MPI_Ibcast", "pread", "reading", "sending", "update"}) {
        EXPECT_EQ(first_words.count(word), 1) << word;
      }
    }
  }
}

TEST_F(ReportTest, BenchBelowTheShareThatIsAskedFor) {
  EXPECT_TRUE(refused(run_job(2, {"bench", "--model", model_folder("tiny-qwen3"), "--iterations", "1",
                                  "--min-achieved", "1000"}),
                      70, {"--min-achieved"}));
  EXPECT_TRUE(done(run_job(
      2, {"bench", "--model", model_folder("tiny-qwen3"), "--iterations", "1", "--min-achieved", "0.0001"})));
  // One rank keeps what it has.
  EXPECT_TRUE(refused(
      run_job(1, {"bench", "--model", model_folder("tiny-qwen3"), "--colocate", "--min-achieved", "0.5"}), 64,
      {"--min-achieved", "travels"}));
}

TEST_F(ReportTest, VerifyAndInspectWriteJson) {
  EXPECT_TRUE(done(run_job(3, sync_words(trained(0)) + Words{"--weight-version", "9"})));
  const Outcome verify = run_plain({"verify", sink_, "--source", trained(0), "--json", json_});
  EXPECT_TRUE(done(verify));
  EXPECT_TRUE(has(verify.out, {"2 shards", "version 9", "exactly"}));
  auto report = read_json(json_);
  EXPECT_EQ(report.at("status"), "done");
  EXPECT_EQ(report.at("weight_version"), 9);
  EXPECT_EQ(report.at("shards"), 2);
  EXPECT_GE(report.at("bytes"), kModelBytes);

  const Outcome inspect = run_plain({"inspect", sink_ + "/rank-1.h5", "--json", json_});
  EXPECT_TRUE(done(inspect));
  EXPECT_TRUE(has(inspect.out, {"version 9", "model.layers.0.mlp.experts.w13_weight", "[4, 128, 128]",
                                "bfloat16", "model.layers.2.self_attn.qkv_proj.weight"}));
  report = read_json(json_);
  EXPECT_EQ(report.at("weight_version"), 9);
}

TEST_F(ReportTest, InspectListsWhatThereIsBesideWhatIsLost) {
  const std::string path = dir_ / "unwritten.h5";
  {
    const Hdf5File file(
        WEIGHTCAST_HDF5(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), path));
    const hsize_t extent = 4;
    const Hdf5Space space(WEIGHTCAST_HDF5(H5Screate_simple(1, &extent, nullptr), path));
    const Hdf5Dataset dataset(WEIGHTCAST_HDF5(
        H5Dcreate2(file.get(), "w", H5T_IEEE_F32LE, space.get(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT),
        path));
  }
  EXPECT_TRUE(refused(run_plain({"inspect", path, "--json", json_}), 65, {path, "w"}));
  const auto report = read_json(json_);
  EXPECT_EQ(report.at("path"), path);
  EXPECT_EQ(report.at("tensors").at(0).at("name"), "w");
  EXPECT_FALSE(report.contains("status"));
}

}  // namespace
}  // namespace weightcast::test_support
