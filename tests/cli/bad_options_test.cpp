#include <sys/stat.h>

#include <cstdint>
#include <limits>

#include "cli/cli.hpp"

namespace weightcast::test_support {
namespace {

class BadOptions : public CliTest {
 protected:
  /// Runs a job that the command line makes impossible, in front of shards that must survive it.
  void expect_refused_job(const Words& more, const Words& in_the_line, int ranks = 3) {
    put_old_shards();
    const auto before = folder_contents(sink_);
    EXPECT_TRUE(refused(run_job(ranks, sync_words(trained(0)) + more), 64, in_the_line));
    EXPECT_EQ(folder_contents(sink_), before);
  }
};

TEST_F(BadOptions, NoCommand) {
  EXPECT_TRUE(refused(run_plain({}), 64, {"no command", "sync", "weightcast --help"}));
}

TEST_F(BadOptions, UnknownCommand) {
  EXPECT_TRUE(refused(run_plain({"sink"}), 64, {"'sink'", "sync", "weightcast --help"}));
  EXPECT_TRUE(refused(run_job(2, {"sink"}), 64, {"'sink'", "sync", "weightcast --help"}));
}

TEST_F(BadOptions, UnknownOption) {
  EXPECT_TRUE(refused(run_plain({"plan", "--sauce", "x"}), 64, {"--sauce", "plan --help"}));
  // An abbreviation that is clear today may become ambiguous with the next option.
  EXPECT_TRUE(refused(run_plain({"plan", "--sourc", "x"}), 64, {"--sourc", "plan --help"}));
  expect_refused_job({"--sauce", "x"}, {"--sauce", "sync --help"});
}

TEST_F(BadOptions, OptionOfAnotherCommand) {
  EXPECT_TRUE(refused(run_plain({"plan", "--iterations", "3"}), 64, {"--iterations", "plan --help"}));
}

TEST_F(BadOptions, OptionWithoutItsValue) {
  EXPECT_TRUE(refused(run_plain({"plan", "--source"}), 64, {"--source", "plan --help"}));
  // The next option is none, nor is one that another command takes.
  for (const std::string next : {"--model", "--json", "--trace=x", "--help"}) {
    SCOPED_TRACE(next);
    EXPECT_TRUE(refused(run_plain({"plan", "--model", model_folder("tiny-qwen3"), "--json", next}), 64,
                        {"--json: its value is missing", next.substr(0, next.find('='))}));
  }
  EXPECT_TRUE(
      done(run_plain({"plan", "--model", model_folder("tiny-qwen3"), "-q", "--json", dir_ / "--json"})));
}

TEST_F(BadOptions, OptionGivenTwice) {
  EXPECT_TRUE(
      refused(run_plain({"plan", "--buffers", "2", "--buffers", "3"}), 64, {"--buffers", "plan --help"}));
}

TEST_F(BadOptions, WordsThatAreNotExpected) {
  EXPECT_TRUE(refused(run_plain({"plan", "extra", "--model", model_folder("tiny-qwen3")}), 64, {"'extra'"}));
  EXPECT_TRUE(refused(run_plain({"inspect"}), 64, {"inspect PATH"}));
  EXPECT_TRUE(refused(run_plain({"inspect", "a", "b"}), 64, {"'b'", "inspect --help"}));
  EXPECT_TRUE(refused(run_plain({"verify", dir_.string()}), 64, {"--source PATH"}));
  EXPECT_TRUE(
      refused(run_plain({"synth", "extra", "--model", model_folder("tiny-qwen3"), "--output", dir_ / "x"}),
              64, {"'extra'"}));
  EXPECT_TRUE(refused(run_plain({"convert", "extra", "--source", trained(0), "--output", dir_ / "x"}), 64,
                      {"'extra'"}));
  expect_refused_job({"extra"}, {"'extra'", "sync --help"});
}

TEST_F(BadOptions, TrainersOfColocatedRanks) {
  expect_refused_job({"--colocate", "--trainers", "2"}, {"--trainers", "--colocate"}, 2);
}

TEST_F(BadOptions, ValuesAreBlamedOnTheirPlace) {
  const Words plan{"plan", "--model", model_folder("tiny-qwen3")};
  put_file(dir_ / "job.cfg", "# two lines\nbuffers = none\n");
  const Words with_file = plan + Words{"--config", dir_ / "job.cfg"};
  EXPECT_TRUE(refused(run_plain(with_file), 64, {"job.cfg:2: buffers none"}));
  // The command line goes before: what it says is its own.
  EXPECT_TRUE(refused(run_plain(with_file + Words{"--buffers", "few"}), 64, {"--buffers few"}));
  EXPECT_TRUE(
      refused(run_plain(with_file, {{"WEIGHTCAST_BUFFERS", "many"}}), 64, {"WEIGHTCAST_BUFFERS many"}));
}

TEST_F(BadOptions, SourceMissing) {
  EXPECT_TRUE(refused(run_job(2, {"sync"}), 64, {"--source PATH"}));
  EXPECT_TRUE(refused(run_plain({"plan"}), 64, {"--source PATH", "--model CONFIG_JSON"}));
  EXPECT_TRUE(refused(run_plain({"convert", "--output", dir_ / "x"}), 64, {"--source PATH"}));
}

TEST_F(BadOptions, ModelMissing) {
  EXPECT_TRUE(refused(run_job(2, {"bench"}), 64, {"--model CONFIG_JSON", "--source PATH"}));
  EXPECT_TRUE(refused(run_job(2, {"bench", "--source", trained(0), "--source", trained(1)}), 64,
                      {"--source", "bench takes one"}));
  EXPECT_TRUE(refused(run_job(2, {"bench", "--source", "/no/such/checkpoint"}), 74, {"/no/such/checkpoint"}));
  EXPECT_TRUE(refused(run_plain({"synth", "--output", dir_ / "x"}), 64, {"--model CONFIG_JSON"}));
}

TEST_F(BadOptions, ASinkOfOtherCommandsIsNotForBench) {
  const Words bench{"bench", "--model", model_folder("tiny-qwen3"), "--iterations", "1"};
  const std::string sink = "hdf5:" + (dir_ / "shards");
  EXPECT_TRUE(refused(run_job(2, bench + Words{"--sink", sink}), 64, {"--sink", "bench writes no files"}));
  EXPECT_TRUE(done(run_job(2, bench, {{"WEIGHTCAST_SINK", sink}})));
  EXPECT_FALSE(std::filesystem::exists(dir_ / "shards"));
}

TEST_F(BadOptions, OutputMissing) {
  EXPECT_TRUE(
      refused(run_plain({"synth", "--model", model_folder("tiny-qwen3")}), 64, {"--output PATH", ".h5"}));
  EXPECT_TRUE(refused(run_plain({"convert", "--source", trained(0)}), 64, {"--output PATH", ".h5"}));
}

TEST_F(BadOptions, Sink) {
  for (const std::string sink : {"tape:/x", "hdf5", "hdf5:", "/some/folder", ""}) {
    SCOPED_TRACE(sink);
    EXPECT_TRUE(refused(run_job(3, {"sync", "--source", trained(0), "--inference", "tp=2", "--sink", sink}),
                        64, {"--sink " + sink, "none", "hdf5:DIR"}));
  }
}

TEST_F(BadOptions, PlacesWithWhatNobodyReplaces) {
  const Words plan{"plan", "--model", model_folder("tiny-qwen3")};
  EXPECT_TRUE(refused(run_plain(plan + Words{"--sink", "hdf5:shards-{step}"}), 64,
                      {"--sink hdf5:shards-{step}", "{version}"}));
  EXPECT_TRUE(
      refused(run_plain(plan + Words{"--sink", "hdf5:{version}/{versions}"}), 64, {"place of {versions}"}));
  EXPECT_TRUE(done(run_plain(plan + Words{"-q", "--sink", "hdf5:{version}/{version}"})));
  // The shell replaces a ~ that begins a word, and no other.
  EXPECT_TRUE(
      refused(run_plain(plan + Words{"--sink", "hdf5:~/shards"}), 64, {"--sink hdf5:~/shards", "$HOME"}));
  EXPECT_TRUE(refused(run_plain(plan + Words{"--sink", "safetensors:~/shards"}), 64,
                      {"--sink safetensors:~/shards", "$HOME"}));
  EXPECT_TRUE(
      refused(run_plain(plan, {{"WEIGHTCAST_SINK", "hdf5:~"}}), 64, {"WEIGHTCAST_SINK hdf5:~", "$HOME"}));
  EXPECT_TRUE(refused(run_plain(plan + Words{"--json=~/plan.json"}), 64, {"--json ~/plan.json", "$HOME"}));
  EXPECT_TRUE(
      refused(run_plain({"convert", "--source", trained(0), "--output=~/x"}), 64, {"--output ~/x", "$HOME"}));
}

TEST_F(BadOptions, ValuesOfAnyLengthAreQuotedInPart) {
  const Words plan{"plan", "--model", model_folder("tiny-qwen3")};
  std::string blanks;
  while (blanks.size() < 4000) blanks += "\x1b[2J x";
  for (const std::string option :
       {"alloc", "inference-alloc", "trainer-alloc", "inference", "trainers", "buffers", "bucket-size",
        "quantize", "moe-layout", "engine", "fan-out", "activation-scales", "inference-stage-layers"}) {
    const Outcome outcome = run_plain(plan + Words{"--" + option + "=" + blanks});
    EXPECT_TRUE(refused(outcome, 64, {"--" + option, "\\x1b[2J x"}));
    EXPECT_LT(outcome.err.size(), 1200U) << outcome.err;
    const std::string longer(10'000, '9');
    EXPECT_TRUE(refused(run_plain(plan + Words{"--" + option + "=" + longer}), 64,
                        {"--" + option + ": has 10000 characters, more than the 4096"}));
  }
  const Outcome path = run_plain({"inspect", std::string(3000, 'x')});
  EXPECT_TRUE(refused(path, 74, {"xxx…xxx", "name"}));
  EXPECT_LT(path.err.size(), 1200U) << path.err;
}

TEST_F(BadOptions, NumbersOutOfRange) {
  const Words plan{"plan", "--model", model_folder("tiny-qwen3")};
  for (const std::string value : {"0", "-3", "three", "3x", "99999999999999999999"}) {
    EXPECT_TRUE(
        refused(run_plain(plan + Words{"--buffers=" + value}), 64, {"--buffers " + value, "at least 1"}));
  }
  EXPECT_TRUE(refused(run_plain(plan + Words{"--trainers", "0"}), 64, {"--trainers 0", "at least 1"}));
  EXPECT_TRUE(refused(run_plain(plan + Words{"--layers", "0"}), 64, {"--layers 0", "at least 1"}));
  EXPECT_TRUE(refused(run_plain(plan + Words{"--rank=-1"}), 64, {"--rank -1", "at least 0"}));
  EXPECT_TRUE(refused(run_plain(plan + Words{"--rank", "2"}), 64, {"--rank 2", "2 ranks"}));
  expect_refused_job({"--buffers", "0"}, {"--buffers 0", "at least 1"});
  expect_refused_job({"--timeout", "0"}, {"--timeout 0", "at least 1"});
  expect_refused_job({"--weight-version", "-1"}, {"--weight-version -1", "at least 0"});
  EXPECT_TRUE(refused(run_plain({"verify", dir_.string(), "--source", trained(0), "--weight-version=1e6"}),
                      64, {"--weight-version 1e6", "at least 0 and at most 9223372036854775807"}));
  expect_refused_job({"--weight-version", "9223372036854775808"},
                     {"--weight-version 9223372036854775808", "and at most 9223372036854775807"});
  expect_refused_job({"--weight-version", ""}, {"--weight-version", "at least 0"});
}

TEST_F(BadOptions, MaxFileSizeOfNothing) {
  EXPECT_TRUE(
      refused(run_plain({"convert", "--source", trained(0), "--output", dir_ / "x", "--max-file-size", "0"}),
              64, {"--max-file-size"}));
  EXPECT_FALSE(std::filesystem::exists(dir_ / "x"));
}

TEST_F(BadOptions, BucketBelow64KiB) {
  expect_refused_job({"--bucket-size", "65535"}, {"--bucket-size 65535", "64.0 KiB"});
  expect_refused_job({"--bucket-size", "0"}, {"--bucket-size 0", "64.0 KiB"});
}

TEST_F(BadOptions, BucketSizeThatIsNone) {
  const Words plan{"plan", "--model", model_folder("tiny-qwen3")};
  for (const std::string size : {"big", "1.5GiB", "-1", "1XB", "99999999999GiB"}) {
    EXPECT_TRUE(
        refused(run_plain(plan + Words{"--bucket-size=" + size}), 64, {"--bucket-size", size, "256MiB"}));
  }
}

TEST_F(BadOptions, Choices) {
  expect_refused_job({"--transport", "pigeon"}, {"--transport pigeon", "auto, mpi, nccl"});
  expect_refused_job({"--fan-out", "some"}, {"--fan-out some", "needed, all"});
  expect_refused_job({"--progress", "maybe"}, {"--progress maybe", "auto, always, never"});
  expect_refused_job({"--moe-layout", "marble"},
                     {"--moe-layout marble", "triton, triton-kernels, cutlass, trtllm"});
  EXPECT_TRUE(refused(run_plain({"plan", "--model", model_folder("tiny-qwen3"), "--moe-layout", "marble"}),
                      64, {"--moe-layout marble", "triton, triton-kernels, cutlass, trtllm"}));
}

TEST_F(BadOptions, EngineThatTheAllocationContradicts) {
  const Words plan{"plan", "--model", model_folder("tiny-qwen3-moe"), "--engine"};
  EXPECT_TRUE(done(run_plain(plan + Words{"vllm"})));
  EXPECT_TRUE(done(run_plain(plan + Words{"vllm", "--alloc", "vllm:t2+megatron:t2"})));
  for (const std::string allocation : {"sglang:t2", "hf"}) {
    EXPECT_TRUE(refused(run_plain(plan + Words{"vllm", "--inference-alloc", allocation}), 64,
                        {"--engine vllm", "--inference-alloc", "leave one"}));
  }
  EXPECT_TRUE(refused(run_plain(plan + Words{"sglang", "--alloc", "megatron:t2+vllm:t2"}), 64,
                      {"--engine sglang", "--alloc", "vllm"}));
  expect_refused_job({"--engine", "steam"}, {"--engine steam", "sglang, vllm"});
}

TEST_F(BadOptions, MinAchieved) {
  const Words bench{"bench", "--model", model_folder("tiny-qwen3"), "--min-achieved"};
  for (const std::string rank_plan : {"most", "-1", ""}) {
    EXPECT_TRUE(refused(run_job(2, bench + Words{rank_plan}), 64, {"--min-achieved " + rank_plan, "0.95"}));
  }
}

TEST_F(BadOptions, Inference) {
  const Words plan{"plan", "--model", model_folder("tiny-qwen3-moe"), "--inference"};
  for (const std::string layout : {"", "tp", "tp=", "tp=two", "tp=0", "tp=-2", "tp=2,xp=3", "tp=2,",
                                   "tp=2,,ep=2", "tp=2 ep=2", "2", ","}) {
    SCOPED_TRACE(layout);
    EXPECT_TRUE(refused(run_plain(plan + Words{layout}), 64, {"--inference " + layout, "tp=2,ep=2,pp=1"}));
  }
  for (const std::string layout : {"tp=2,tp=4", "tp=2,ep=1,tp=2"}) {
    EXPECT_TRUE(refused(
        run_plain(plan + Words{layout}), 64,
        {"--inference " + layout, "'" + layout.substr(layout.rfind(',') + 1) + "'", "tp a second time"}));
  }
  EXPECT_TRUE(refused(run_plain(plan + Words{"tp=2,ep=4"}), 64, {"tp=2,ep=4", "does not divide", "tp=2"}));
}

TEST_F(BadOptions, DataParallelAttention) {
  // 8 heads, 2 kv heads, 8 experts.
  const Words plan{"plan", "--source", trained(0)};
  const auto refuses = [&](const Words& layout, const Words& in_the_line) {
    EXPECT_TRUE(refused(run_plain(plan + layout), 64, in_the_line));
  };
  refuses({"--inference", "attn_tp=5,attn_dp=2"}, {"attn_tp=5", "heads", "(8)", "divisor"});
  refuses({"--inference", "attn_tp=2,attn_dp=2,tp=4"}, {"in place of tp", "leave tp out"});
  refuses({"--inference", "attn_tp=2,attn_dp=2,ep=3"}, {"ep=3", "attn_tp·attn_dp=4"});
  refuses({"--inference-alloc", "vllm:(attn:d8t1|ffn:e4)"},
          {"--inference-alloc", "8 ranks", "both must be equal"});
  refuses({"--inference-alloc", "vllm:(attn:d8t1)"}, {"--inference-alloc", "the experts are missing"});
  EXPECT_TRUE(refused(run_job(4, {"sync", "--source", trained(0), "--sink", "hdf5:" + sink_, "--inference",
                                  "attn_tp=2,attn_dp=2,ep=4"}),
                      64, {"too few ranks", "attn_tp 2 × attn_dp 2 need 5 ranks", "start 5"}));
}

TEST_F(BadOptions, SharedExpertsThatVllmMayKeepWhole) {
  const Words plan{"plan", "--model", std::string(kData) + "/vllm/deepseek-v3/config.json", "--engine",
                   "vllm"};
  EXPECT_TRUE(refused(
      run_plain(plan + Words{"--inference", "attn_tp=2,attn_dp=2,ep=4"}), 64,
      {"attn_tp=2 with attn_dp=2 and ep=4", "mlp.shared_experts", "not known here", "attn_tp=1 or ep=1"}));
  EXPECT_TRUE(done(run_plain(plan + Words{"--inference", "attn_tp=1,attn_dp=4,ep=4"})));
  EXPECT_TRUE(done(run_plain(plan + Words{"--inference", "attn_tp=2,attn_dp=2"})));
}

TEST_F(BadOptions, LayoutThatDoesNotDivideTheModel) {
  // 8 heads, 3 layers, a vocabulary of 320 with its padding.
  const Words plan{"plan", "--source", trained(0), "--inference"};
  EXPECT_TRUE(refused(run_plain(plan + Words{"tp=5"}), 64, {"tp=5", "heads", "(8)", "divisor"}));
  EXPECT_TRUE(refused(run_plain(plan + Words{"tp=3"}), 64, {"tp=3", "vocabulary", "(320)", "divisor"}));
  EXPECT_TRUE(refused(run_plain(plan + Words{"tp=16,ep=16"}), 64, {"tp=16", "heads", "(8)", "divisor"}));
  EXPECT_TRUE(refused(run_plain(plan + Words{"pp=2"}), 64, {"pp=2", "layers", "(3)", "divisor"}));
  const Words job{"sync", "--source", trained(0), "--sink", "hdf5:" + sink_, "--inference"};
  EXPECT_TRUE(refused(run_job(6, job + Words{"tp=5"}), 64, {"tp=5", "heads", "(8)", "divisor"}));
  EXPECT_FALSE(std::filesystem::exists(sink_));
}

TEST_F(BadOptions, ExpertsThatEpDoesNotDivide) {
  auto config = read_json(trained(0) + "/config.json");
  config["num_local_experts"] = 6;
  put_file(dir_ / "config.json", config.dump());
  EXPECT_TRUE(refused(run_plain({"plan", "--model", dir_ / "config.json", "--inference", "tp=4,ep=4"}), 64,
                      {"ep=4", "experts", "(6)", "divisor"}));
}

TEST_F(BadOptions, KvHeadsThatCannotBeShared) {
  auto config = read_json(trained(0) + "/config.json");
  config["num_attention_heads"] = 12;
  config["num_key_value_heads"] = 4;
  config["vocab_size"] = 384;
  put_file(dir_ / "config.json", config.dump());
  EXPECT_TRUE(refused(run_plain({"plan", "--model", dir_ / "config.json", "--inference", "tp=6,ep=1"}), 64,
                      {"tp=6", "4 kv heads"}));
}

TEST_F(BadOptions, ConfigFile) {
  const Words plan{"plan", "--model", model_folder("tiny-qwen3"), "--config"};
  const std::string path = dir_ / "options.conf";
  const auto refuses = [&](const std::string& text, const Words& in_the_line) {
    put_file(path, text);
    EXPECT_TRUE(refused(run_plain(plan + Words{path}), 64, in_the_line)) << text;
  };
  refuses("# a comment\n\nbucket-syze = 1MiB\n", {path + ":3", "bucket-syze", "unknown"});
  refuses("bucket-size\n", {path + ":1", "bucket-size", "name = value"});
  refuses("= 3\n", {path + ":1"});
  refuses("trainers = 2\nbuffers = 0\n", {"buffers 0", "at least 1"});
  refuses("# one\nconfig = /nope\n",
          {path + ":2: config", "cannot name another one; write that one's lines here"});
  refuses(std::string(10'000, 'x') + " = 3\n", {path + ":1: xxxx", "xxx…: unknown option"});
  refuses("colocate = perhaps\n", {path + ":1", "colocate", "'perhaps'"});
  ASSERT_EQ(::mkfifo((dir_ / "pipe").c_str(), 0600), 0);
  put_file(dir_ / "large", "#" + std::string(1 << 20, ' '));
  for (const auto& [none, why] :
       std::map<std::string, std::string>{{dir_ / "absent.conf", ": cannot be read: No such file"},
                                          {dir_.string(), ": is a folder"},
                                          {dir_ / "pipe", ": is a pipe that is not written"},
                                          {dir_ / "large", ": is longer"},
                                          {"/dev/zero", ": is no file"}}) {
    EXPECT_TRUE(
        refused(run_plain(plan + Words{none}), 74, {"--config " + none + why, "name = value", "1.00 MiB"}));
  }
}

TEST_F(BadOptions, MoreVersionsThanNumbers) {
  const std::string last = std::to_string(std::numeric_limits<std::int64_t>::max());
  expect_refused_job({"--source", trained(1), "--weight-version", last},
                     {"--weight-version " + last, "at most 9223372036854775806"});
  // A checkpoint's own version is looked at before anything is sent, too.
  const std::string source = dir_ / "latest.h5";
  EXPECT_TRUE(
      done(run_plain({"convert", "--source", trained(0), "--output", source, "--weight-version", last})));
  put_old_shards();
  const auto before = folder_contents(sink_);
  EXPECT_TRUE(refused(run_job(3, sync_words(source) + Words{"--source", trained(1)}), 64,
                      {source, last, "2 updates", "--weight-version"}));
  EXPECT_EQ(folder_contents(sink_), before);
  EXPECT_TRUE(done(run_job(3, sync_words(source))));
}

TEST_F(BadOptions, Environment) {
  const Words plan{"plan", "--model", model_folder("tiny-qwen3")};
  EXPECT_TRUE(
      refused(run_plain(plan, {{"WEIGHTCAST_BUCKET_SIZE", "huge"}}), 64, {"WEIGHTCAST_BUCKET_SIZE: 'huge'"}));
  EXPECT_TRUE(
      refused(run_plain(plan, {{"WEIGHTCAST_BUFFERS", ""}}), 64, {"WEIGHTCAST_BUFFERS", "at least 1"}));
  EXPECT_TRUE(refused(run_plain(plan, {{"WEIGHTCAST_INFERENCE", ""}}), 64,
                      {"WEIGHTCAST_INFERENCE", "tp=2,ep=2,pp=1"}));
  EXPECT_TRUE(refused(run_plain(plan, {{"WEIGHTCAST_COLOCATE", ""}}), 64, {"WEIGHTCAST_COLOCATE", "true"}));
  for (const char* option : {"--quantize", "--json", "--model"}) {
    EXPECT_TRUE(refused(run_plain(plan + Words{option, ""}), 64, {option}));
  }
  EXPECT_TRUE(refused(run_plain({"synth", "--model", model_folder("tiny-qwen3"), "--output", dir_ / "x"},
                                {{"WEIGHTCAST_WEIGHT_VERSION", ""}}),
                      64, {"WEIGHTCAST_WEIGHT_VERSION", "at least 0"}));
  EXPECT_TRUE(refused(run_plain(plan, {{"WEIGHTCAST_COLOCATE", "perhaps"}}), 64,
                      {"WEIGHTCAST_COLOCATE", "'perhaps'"}));
  EXPECT_TRUE(refused(run_plain(plan, {{"WEIGHTCAST_BUFFERS", "2"}, {"WEIGHTCAST_buffers", "3"}}), 64,
                      {"WEIGHTCAST_BUFFERS", "WEIGHTCAST_buffers", "unset one"}));
  EXPECT_TRUE(refused(run_plain(plan, {{"WEIGHTCAST_CONFIG", dir_ / "none"}}), 74,
                      {"WEIGHTCAST_CONFIG " + (dir_ / "none"), "No such file"}));
}

TEST_F(BadOptions, EveryLineCallsAnOptionAsItWasGiven) {
  const Words plan{"plan", "--model", model_folder("tiny-qwen3")};
  struct Case {
    const char* option;
    const char* value;
  };
  const std::string file = dir_ / "options";
  for (const Case& c : std::vector<Case>{{"inference", "tp=x"},
                                         {"inference", "tp=3"},
                                         {"rank", "7"},
                                         {"moe-layout", "x"},
                                         {"json", "/tmp"},
                                         {"activation-scales", "2,2"},
                                         {"activation-scales", "x"},
                                         {"layers", "0"},
                                         {"fan-out", "x"},
                                         {"bucket-size", "1"},
                                         {"inference-stage-layers", "1,1"}}) {
    SCOPED_TRACE(c.option);
    std::string variable = "WEIGHTCAST_";
    for (const char* at = c.option; *at != '\0'; ++at) {
      variable += *at == '-' ? '_' : static_cast<char>(*at - 'a' + 'A');
    }
    const Outcome by_variable = run_plain(plan, {{variable, c.value}});
    const std::string dashed = std::string("--") + c.option;
    EXPECT_NE(by_variable.exit_code, 0);
    EXPECT_TRUE(has(by_variable.err, {variable}));
    EXPECT_EQ(by_variable.err.find(dashed), std::string::npos) << by_variable.err;
    put_file(file, fmt::format("# by file\n{} = {}\n", c.option, c.value));
    const Outcome by_file = run_plain(plan + Words{"--config", file});
    EXPECT_EQ(by_file.exit_code, by_variable.exit_code);
    EXPECT_TRUE(has(by_file.err, {file + ":2: " + c.option}));
    // The command line goes first, and is blamed then.
    const Outcome by_both = run_plain(plan + Words{dashed, c.value}, {{variable, c.value}});
    EXPECT_TRUE(has(by_both.err, {dashed}));
    EXPECT_EQ(by_both.err.find(variable), std::string::npos) << by_both.err;
  }
  put_file(file, "buffers = 2\nbuffers = 3\n");
  EXPECT_TRUE(refused(run_plain(plan + Words{"--config", file}), 64, {file + ":2: buffers", "second time"}));
  put_file(file, "buffers = 2\n= 3\n");
  EXPECT_TRUE(refused(run_plain(plan + Words{"--config", file}), 64, {file + ":2: write name = value"}));
  EXPECT_TRUE(refused(run_plain({"plan", "--inference", "tp=1"}, {{"WEIGHTCAST_SOURCE", ""}}), 64,
                      {"WEIGHTCAST_SOURCE", "empty"}));
  EXPECT_TRUE(refused(run_job(2, {"sync", "--source", trained(0)}, {{"WEIGHTCAST_INFERENCE", "tp=3"}}), 64,
                      {"WEIGHTCAST_INFERENCE"}));
}

TEST_F(BadOptions, QuietDoesNotHideErrors) {
  EXPECT_TRUE(refused(run_plain({"plan", "-q", "--model", dir_ / "absent"}), 74, {dir_ / "absent"}));
  EXPECT_TRUE(refused(run_plain({"plan", "-q", "--sauce"}), 64, {"--sauce"}));
  EXPECT_TRUE(refused(run_job(2, {"sync", "-q", "--source", dir_ / "absent"}), 74, {dir_ / "absent"}));
}

}  // namespace
}  // namespace weightcast::test_support
