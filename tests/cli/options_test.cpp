#include <sys/stat.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <thread>

#include "cli/cli.hpp"

namespace weightcast::test_support {
namespace {

constexpr std::array<const char*, 10> kCommands{"sync",  "plan",    "bench", "inspect", "verify",
                                                "synth", "convert", "hosts", "balance", "rebalance"};

using OptionsTest = CliTest;

TEST_F(OptionsTest, HelpNeedsNoLauncher) {
  for (const Words& words : {Words{"--help"}, Words{"-h"}, Words{"help"}}) {
    const Outcome outcome = run_plain(words);
    EXPECT_TRUE(done(outcome));
    EXPECT_TRUE(has(outcome.out, Words(kCommands.begin(), kCommands.end())));
    EXPECT_EQ(outcome.err, "");
  }
}

TEST_F(OptionsTest, EveryCommandHasHelpAndVersion) {
  for (const std::string command : kCommands) {
    SCOPED_TRACE(command);
    const Outcome help = run_plain({command, "--help"});
    EXPECT_TRUE(done(help));
    EXPECT_TRUE(has(help.out, {"usage: ", "weightcast " + command, "--config", "--quiet"}));
    EXPECT_EQ(help.err, "");
    EXPECT_EQ(run_plain({command, "-h"}).out, help.out);
    const Outcome version = run_plain({command, "--version"});
    EXPECT_TRUE(done(version));
    EXPECT_TRUE(version.out.starts_with("weightcast ")) << version.out;
  }
}

TEST_F(OptionsTest, HelpListsTheOptionsOfItsCommand) {
  EXPECT_TRUE(has(run_plain({"sync", "--help"}).out,
                  {"--source", "--model", "--trainers", "--colocate", "--inference", "--moe-layout",
                   "--bucket-size", "--buffers", "--transport", "--sink", "--weight-version", "--no-verify",
                   "--timeout", "--progress", "--json"}));
  EXPECT_FALSE(has(run_plain({"sync", "--help"}).out, {"--iterations"}));
}

TEST_F(OptionsTest, HelpFitsTheWidthThatThereIs) {
  for (const std::string command : kCommands) {
    EXPECT_EQ(too_wide(run_plain({command, "--help"}, {{"COLUMNS", "80"}}).out), "") << command;
  }
  EXPECT_EQ(too_wide(run_plain({"--help"}, {{"COLUMNS", "80"}}).out), "");
  const auto lines = [](const std::string& text) { return std::count(text.begin(), text.end(), '\n'); };
  const std::string narrow = run_plain({"sync", "--help"}, {{"COLUMNS", "50"}}).out;
  const std::string wide = run_plain({"sync", "--help"}, {{"COLUMNS", "200"}}).out;
  EXPECT_GT(lines(narrow), lines(wide));
  // Where it is broken there was a blank.
  const auto words = [](const std::string& text) {
    std::istringstream all(text);
    return Words(std::istream_iterator<std::string>(all), {});
  };
  EXPECT_EQ(words(narrow), words(wide));
}

TEST_F(OptionsTest, HelpSaysWhatAnOptionIsForItsCommand) {
  EXPECT_FALSE(has(run_plain({"verify", "--help"}).out, {"several times"}));
  EXPECT_TRUE(has(run_plain({"verify", "--help"}).out, {"the shards must have"}));
  EXPECT_FALSE(has(run_plain({"synth", "--help"}).out, {"shards must have"}));
  EXPECT_TRUE(has(run_plain({"hosts", "--help"}).out, {"rankfile"}));
  EXPECT_FALSE(has(run_plain({"convert", "--help"}).out, {"rankfile"}));
}

TEST_F(OptionsTest, VersionNamesTheLibraries) {
  const Outcome outcome = run_plain({"--version"});
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {"weightcast 0.1.0", "Open MPI", "HDF5", "Boost"}));
}

TEST_F(OptionsTest, WordsStandForOptions) {
  EXPECT_EQ(run_plain({"version"}).out, run_plain({"--version"}).out);
  EXPECT_EQ(run_plain({"-V"}).out, run_plain({"--version"}).out);
  EXPECT_EQ(run_plain({"help", "sync"}).out, run_plain({"sync", "--help"}).out);
}

TEST_F(OptionsTest, WhatIsNearlyANameIsSuggested) {
  EXPECT_TRUE(refused(run_plain({"snyc"}), 64, {"'snyc' is no command; did you mean sync?"}));
  EXPECT_TRUE(refused(run_plain({"convrt"}), 64, {"did you mean convert?"}));
  const Outcome far = run_plain({"rsync-all"});
  EXPECT_TRUE(refused(far, 64, {"'rsync-all' is no command; commands are"}));
  EXPECT_TRUE(refused(run_plain({"plan", "--infernce", "tp=2"}), 64, {"did you mean --inference?"}));
  EXPECT_TRUE(refused(run_plain({"plan", "--inf", "tp=2"}), 64, {"did you mean --inference?"}));
  EXPECT_TRUE(
      refused(run_plain({"plan", "--inference-st", "1"}), 64, {"did you mean --inference-stage-layers?"}));
  for (const char* command : {"convert", "synth"}) {
    EXPECT_TRUE(refused(run_plain({command, "--output", "-"}), 64,
                        {"--output -: a checkpoint does not go to stdout"}));
  }
  EXPECT_TRUE(refused(run_plain({"hosts", "--clean"}), 64, {"write weightcast hosts --clean DIR"}));
  EXPECT_FALSE(has(run_plain({"plan", "--xyz", "tp=2"}).err, {"did you mean"}));
}

TEST_F(OptionsTest, BashCompletes) {
  const Outcome script = run_plain({"completion", "bash"});
  ASSERT_TRUE(done(script));
  const auto complete = [&](const std::string& words, int at) {
    const std::string typed =
        "COMP_WORDS=(" + words + "); COMP_CWORD=" + std::to_string(at) + "; _weightcast; ";
    const std::string print = R"(printf '%s\n' "${COMPREPLY[@]}")";
    return run({{"bash", "-c", script.out + typed + print}, {}}).out;
  };
  EXPECT_EQ(complete("weightcast sy", 1), "sync\nsynth\n");
  EXPECT_EQ(complete("weightcast synth --ou", 2), "--output\n");
  EXPECT_EQ(complete("mpirun -n 3 ./bin/weightcast bench --iter", 5), "--iterations\n");
  EXPECT_EQ(complete("weightcast trigger --sour", 2), "\n");
  EXPECT_TRUE(refused(run_plain({"completion", "fish"}), 64, {"weightcast completion bash"}));
}

TEST_F(OptionsTest, LearnIsAnotherProgram) {
  EXPECT_TRUE(refused(run_plain({"learn", "x"}, {{"WEIGHTCAST_PYTHON", "/none/python"}}), 74,
                      {"/none/python cannot be started", "WEIGHTCAST_PYTHON"}));
  // One that says what it was called with, and ends with a code of its own.
  const std::filesystem::path python = dir_ / "python";
  std::ofstream(python) << "#!/bin/sh\nshift 2\necho \"$@\"\nexit 65\n";
  std::filesystem::permissions(python, std::filesystem::perms::owner_all);
  const Outcome outcome = run_plain({"learn", "MODEL", "--tp", "2"}, {{"WEIGHTCAST_PYTHON", python}});
  EXPECT_EQ(outcome.out, "MODEL --tp 2\n");
  EXPECT_EQ(outcome.exit_code, 65);
  // The variable is no option of the others.
  EXPECT_EQ(run_plain({"hosts", "--help"}, {{"WEIGHTCAST_PYTHON", python}}).err, "");
  EXPECT_TRUE(has(run_plain({"help", "learn"}).out, {"weightcast learn MODEL"}));
}

TEST_F(OptionsTest, HelpIsAnsweredBeforeMistakes) {
  EXPECT_TRUE(done(run_plain({"sync", "--help", "--bucket-size", "nonsense"})));
  EXPECT_TRUE(done(run_plain({"sync", "--help"}, {{"WEIGHTCAST_BUFFERS", "0"}})));
}

/// `plan` writes into its JSON what it was told.
class Precedence : public CliTest {
 protected:
  nlohmann::json plan(const Words& more, const Variables& environment = {}) const {
    const std::string json = dir_ / "plan.json";
    const Outcome outcome =
        run_plain({"plan", "--model", model_folder("tiny-qwen3"), "--json", json}, environment);
    EXPECT_TRUE(done(outcome));
    const Outcome changed =
        run_plain(Words{"plan", "--model", model_folder("tiny-qwen3"), "--json", json} + more, environment);
    EXPECT_TRUE(done(changed));
    return read_json(json);
  }

  std::string file_ = dir_ / "options.conf";
};

TEST_F(Precedence, APipeIsAFile) {
  ASSERT_EQ(::mkfifo(file_.c_str(), 0600), 0);
  std::thread writer([&] { put_file(file_, "bucket-size = 64KiB\n"); });
  const auto json = dir_ / "plan.json";
  const Words words{"plan", "--model", model_folder("tiny-qwen3"), "--json", json, "--config"};
  EXPECT_TRUE(done(run_plain(words + Words{file_})));
  writer.join();
  EXPECT_EQ(read_json(json).at("bucket_bytes"), 64 << 10);
  CommandLine command;
  command.words =
      Words{"sh", "-c", "echo trainers=3 | \"$0\" \"$@\"", WEIGHTCAST_BINARY} + words + Words{"/dev/stdin"};
  EXPECT_TRUE(done(run(command)));
  EXPECT_EQ(read_json(json).at("trainers"), 3);
  command.words[2] = "yes | \"$0\" \"$@\"";
  EXPECT_TRUE(refused(run(command), 74, {"--config /dev/stdin", "at most 1.00 MiB"}));
}

TEST_F(Precedence, AVariableWithoutAValueIsNone) {
  // Shells make no such one; a program that starts others may.
  const std::string start =
      "import os, sys, ctypes\n"
      "libc = ctypes.CDLL(None)\n"
      "words = [word.encode() for word in sys.argv[1:]]\n"
      "libc.execve(words[0], (ctypes.c_char_p * (len(words) + 1))(*words, None),\n"
      "            (ctypes.c_char_p * 3)(b'WEIGHTCAST_QUIET', b'PATH=/usr/bin:/bin', None))\n";
  EXPECT_TRUE(done(
      run({{"python3", "-c", start, WEIGHTCAST_BINARY, "plan", "--model", model_folder("tiny-qwen3")}, {}})));
}

TEST_F(Precedence, CommandLineOverEnvironmentOverFile) {
  put_file(file_, "# for all commands\nbucket-size = 64KiB\n trainers=3\n  # some\n\ninference = tp=4\n");
  const Words from_file{"--config", file_};
  const Variables environment{{"WEIGHTCAST_BUCKET_SIZE", "128KiB"}, {"WEIGHTCAST_TRAINERS", "2"}};
  const Words words{"--bucket-size", "256KiB"};

  auto json = plan(from_file);
  EXPECT_EQ(json.at("bucket_bytes"), 64 << 10);
  EXPECT_EQ(json.at("trainers"), 3);
  EXPECT_EQ(json.at("inference").at("tp"), 4);

  json = plan(from_file, environment);
  EXPECT_EQ(json.at("bucket_bytes"), 128 << 10);
  EXPECT_EQ(json.at("trainers"), 2);
  EXPECT_EQ(json.at("inference").at("tp"), 4);

  json = plan(from_file + words, environment);
  EXPECT_EQ(json.at("bucket_bytes"), 256 << 10);
  EXPECT_EQ(json.at("trainers"), 2);
  EXPECT_EQ(json.at("inference").at("tp"), 4);
}

TEST_F(Precedence, AValueOfAFileIsNeverCut) {
  for (const char* line :
       {"source = run #2\n", "source = run\t#2\n", "trainers = 3 # some\n", "source = #2\n"}) {
    put_file(file_, std::string("inference = tp=2\n") + line);
    EXPECT_TRUE(refused(run_plain({"plan", "--config", file_}), 64,
                        {file_ + ":2: ", "may be a comment or a part of the value", "a line of its own"}));
  }
  // Without a blank in front it is a character as any other.
  std::filesystem::create_directory_symlink(trained(0), dir_ / "run#2");
  put_file(file_, "\t# a comment\nsource = " + (dir_ / "run#2") + "\n");
  const Outcome outcome = run_plain({"plan", "--config", file_});
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {"run#2"}));
}

TEST_F(Precedence, EnvironmentNamesTheFile) {
  put_file(file_, "bucket-size = 64KiB\n");
  EXPECT_EQ(plan({}, {{"WEIGHTCAST_CONFIG", file_}}).at("bucket_bytes"), 64 << 10);
}

TEST_F(Precedence, Switches) {
  put_file(file_, "colocate = yes\n");
  EXPECT_EQ(plan({}).at("colocate"), false);
  EXPECT_EQ(plan({"--colocate"}).at("colocate"), true);
  EXPECT_EQ(plan({"--config", file_}).at("colocate"), true);
  EXPECT_EQ(plan({}, {{"WEIGHTCAST_COLOCATE", "1"}}).at("colocate"), true);
  EXPECT_EQ(plan({"--config", file_}, {{"WEIGHTCAST_COLOCATE", "0"}}).at("colocate"), false);
  EXPECT_EQ(plan({"--colocate"}, {{"WEIGHTCAST_COLOCATE", "0"}}).at("colocate"), true);
}

TEST_F(Precedence, SourcesOfTheCommandLineReplaceThoseOfTheEnvironment) {
  // A source that is not there would be noticed.
  const Words words{"plan", "--source", trained(0)};
  EXPECT_TRUE(done(run_plain(words, {{"WEIGHTCAST_SOURCE", dir_ / "absent"}})));
  put_file(file_, "source = " + (dir_ / "absent") + "\n");
  EXPECT_TRUE(done(run_plain(words + Words{"--config", file_})));
  EXPECT_TRUE(done(run_plain({"plan"}, {{"WEIGHTCAST_SOURCE", trained(0)}})));
}

TEST_F(Precedence, OneFileServesAllCommands) {
  put_file(file_, "iterations = 3\nsink = none\n");
  EXPECT_TRUE(done(run_plain({"plan", "--source", trained(0), "--config", file_})));
}

TEST_F(Precedence, SizesOfEverySpelling) {
  const std::vector<std::pair<std::string, std::int64_t>> sizes{
      {"65536", 65536},    {"65536B", 65536},  {"64KiB", 65536},   {"1MiB", 1 << 20},     {"1GiB", 1LL << 30},
      {"3GiB", 3LL << 30}, {"100KB", 100'000}, {"1MB", 1'000'000}, {"2GB", 2'000'000'000}};
  for (const auto& [text, bytes] : sizes)
    EXPECT_EQ(plan({"--bucket-size", text}).at("bucket_bytes"), bytes) << text;
}

TEST_F(Precedence, ReachesEveryRankOfAJob) {
  const std::string json = dir_ / "report.json";
  put_file(file_, "bucket-size = 64KiB\njson = " + json + "\n");
  const Variables environment{{"WEIGHTCAST_INFERENCE", "tp=2,ep=1"}, {"WEIGHTCAST_BUFFERS", "2"}};
  const Outcome outcome = run_job(3, {"sync", "--source", trained(0), "--config", file_}, environment);
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {"tp 2, ep 1", "buckets of 64.0 KiB × 2"}));
  EXPECT_EQ(read_json(json).at("staging_bytes_per_rank"), 2 * (64 << 10));
}

TEST_F(Precedence, AVariableNamesSeveralSourcesOneALine) {
  const std::string json = dir_ / "report.json";
  const Variables environment{{"WEIGHTCAST_SOURCE", trained(0) + "\n" + trained(1) + "\n"},
                              {"WEIGHTCAST_SINK", "none"}};
  EXPECT_TRUE(done(run_job(2, {"sync", "--inference", "tp=1", "--json", json}, environment)));
  const nlohmann::json updates = read_json(json).at("updates");
  ASSERT_EQ(updates.size(), 2);
  EXPECT_EQ(updates[1].at("source"), trained(1));
}

TEST_F(OptionsTest, VariablesThatAreNoOptionsAreNoted) {
  const Words words{"plan", "--model", model_folder("tiny-qwen3")};
  const Outcome outcome = run_plain(words, {{"WEIGHTCAST_BUKET_SIZE", "1MiB"}});
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.err, {"WEIGHTCAST_BUKET_SIZE", "ignored"}));
  EXPECT_EQ(run_plain(words + Words{"-q"}, {{"WEIGHTCAST_BUKET_SIZE", "1MiB"}}).err, "");
}

TEST_F(OptionsTest, ModelMayBeAFolderOrAFile) {
  const auto model_line = [](const Outcome& outcome) {
    return outcome.out.substr(outcome.out.find(" tensors, "), 30);
  };
  const Outcome folder = run_plain({"plan", "--model", model_folder("tiny-qwen3")});
  const Outcome file = run_plain({"plan", "--model", model_folder("tiny-qwen3") + "/config.json"});
  EXPECT_TRUE(done(folder));
  EXPECT_TRUE(done(file));
  EXPECT_EQ(model_line(folder), model_line(file));
}

}  // namespace
}  // namespace weightcast::test_support
