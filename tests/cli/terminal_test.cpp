// What reaches the terminal and the files of reports, whatever names, paths and options hold; and commands
// whose standard streams are closed, full or without reader.

#include <array>
#include <span>
#include <utility>

#include "cli/cli.hpp"
#include "storage/writer.hpp"

namespace weightcast::test_support {
namespace {

/// What could take a terminal over, and what could pass for a line of this program.
const std::string kForged = "x\x1b[2J\x1b]0;t\x07\r\nweightcast: error: forged";
const std::string kShown = R"(x\x1b[2J\x1b]0;t\x07\r\nweightcast: error: forged)";
/// Bytes that are no UTF-8.
const std::string kLatin = "caf\xe9";

class Terminal : public CliTest {
 protected:
  /// Expects lines of printable text without a forged one, and the name in its printable form.
  static void expect_tame(const std::string& text, const std::string& shown = kShown) {
    for (const char c : text) EXPECT_TRUE(c == '\n' || static_cast<unsigned char>(c) >= 0x20) << text;
    EXPECT_EQ(text.find("\nweightcast: error: forged"), std::string::npos) << text;
    EXPECT_TRUE(has(text, {shown}));
  }
  static void expect_tame_refusal(const Outcome& outcome, int code, const std::string& shown = kShown) {
    EXPECT_TRUE(refused(outcome, code, {shown}));
    expect_tame(outcome.err, shown);
  }

  /// The trained model under another name.
  std::string copy_as(const std::string& name) const {
    std::filesystem::create_directory(dir_ / name);
    std::filesystem::copy(trained(0), dir_ / name);
    return dir_ / name;
  }

  /// An HDF5 file of one tensor.
  static void put_hdf5(const std::string& path, const std::string& tensor, const Attributes& attributes) {
    const auto file = create_hdf5(path, attributes, {{tensor, DType::kF32, {2, 2}}});
    const std::array<float, 4> values{1, 2, 3, 4};
    file->write(0, 0, std::as_bytes(std::span(values)));
    file->commit();
  }

  /// `weightcast WORDS…` as a shell starts it with that redirection; descriptor 3 is a pipe whose reader is
  /// gone.
  static CommandLine redirected(const std::string& redirection, const Words& words) {
    CommandLine command;
    const std::string script = "exec 3> >(:); wait $!; exec \"$0\" \"$@\" " + redirection + " 3>&-";
    command.words = Words{"bash", "-c", script, WEIGHTCAST_BINARY} + words;
    return command;
  }

  std::string json_ = dir_ / "report.json";
};

TEST_F(Terminal, PathsOfSources) {
  for (const auto& [name, shown] : {std::pair(kForged, kShown), {kLatin, std::string(R"(caf\xe9)")}}) {
    const std::string source = copy_as(name);
    const Words json{"--json", json_};
    const Outcome inspected = run_plain(Words{"inspect", source, "--no-digests"} + json);
    EXPECT_TRUE(done(inspected));
    expect_tame(inspected.out, shown);
    EXPECT_EQ(read_json(json_).at("tensors").size(), 102);
    const Outcome planned =
        run_plain(Words{"plan", "--source", source, "--inference", "tp=2", "--segments"} + json);
    EXPECT_TRUE(done(planned));
    expect_tame(planned.out, shown);
    EXPECT_EQ(read_json(json_).at("model").at("tensors"), 102);
    const Outcome converted = run_plain({"convert", "--source", source, "--output", dir_ / name + ".h5"});
    EXPECT_TRUE(done(converted));
    expect_tame(converted.out, shown);
    const Outcome synced = run_job(
        3, sync_words(source) + Words{"--trace", dir_ / name + ".trace", "--progress", "always"} + json);
    EXPECT_TRUE(done(synced));
    expect_tame(synced.out, shown);
    EXPECT_EQ(read_json(json_).at("updates").size(), 1);
    EXPECT_FALSE(read_json(dir_ / name + ".trace").at("traceEvents").empty());
    const Outcome verified = run_plain(Words{"verify", sink_, "--source", source} + json);
    EXPECT_TRUE(done(verified));
    expect_tame(verified.out, shown);
    EXPECT_EQ(read_json(json_).at("shards"), 2);
  }
}

TEST_F(Terminal, PathsThatAreNotThere) {
  const std::string absent = dir_ / kForged;
  expect_tame_refusal(run_plain({"inspect", absent}), 74);
  expect_tame_refusal(run_plain({"verify", absent, "--source", trained(0), "--json", json_}), 74);
  EXPECT_TRUE(has(read_json(json_).at("error"), {kShown}));
  expect_tame_refusal(run_job(3, sync_words(absent) + Words{"--json", json_}), 74);
  EXPECT_EQ(read_json(json_).at("status"), "input/output");
}

TEST_F(Terminal, NamesOfTensors) {
  SafetensorsFile file = SafetensorsFile::read(trained(0) + "/model.safetensors");
  file.tensors[kForged] = file.tensors.at("model.norm.weight");
  const std::string source = copy_as("source");
  file.write(source + "/model.safetensors");
  const Outcome outcome = run_plain({"inspect", source, "--json", json_});
  EXPECT_TRUE(done(outcome));
  expect_tame(outcome.out);
  EXPECT_TRUE(has(get_file(json_), {R"("name": "x\u001b[2J)"}));
  expect_tame_refusal(run_plain({"plan", "--source", source, "--inference", "tp=1"}), 65);
  expect_tame_refusal(run_job(3, sync_words(source)), 65);
}

TEST_F(Terminal, NamesAndAttributesInHdf5) {
  const std::string path = dir_ / "one.h5";
  put_hdf5(path, kForged, {{"kind", std::string("checkpoint")}, {"note", "\x1b[31mred\x07"}});
  const Outcome forged = run_plain({"inspect", path, "--json", json_});
  EXPECT_TRUE(done(forged));
  expect_tame(forged.out);
  EXPECT_TRUE(has(forged.out, {R"(# note: \x1b[31mred\x07)"}));
  put_hdf5(path, kLatin, {{"kind", std::string("checkpoint")}, {"note", kLatin}});
  const Outcome latin = run_plain({"inspect", path, "--json", json_});
  EXPECT_TRUE(done(latin));
  expect_tame(latin.out, R"(caf\xe9)");
  EXPECT_EQ(read_json(json_).at("tensors").at(0).at("name"), R"(caf\xe9)");
}

TEST_F(Terminal, AttributesOfShards) {
  std::filesystem::create_directory(sink_);
  Attributes attributes{{"kind", std::string("shard")}, {"moe_layout", kForged}};
  for (const char* name : {"rank", "weight_version", "replica", "pp_rank", "tp_rank", "ep_rank"}) {
    attributes[name] = std::int64_t{0};
  }
  for (const char* name : {"replicas", "pp_size", "tp_size", "ep_size"}) attributes[name] = std::int64_t{1};
  put_hdf5(sink_ + "/rank-0.h5", "w", attributes);
  expect_tame_refusal(run_plain({"verify", sink_, "--source", trained(0)}), 65);
}

TEST_F(Terminal, Options) {
  expect_tame_refusal(run_plain({kForged}), 64);
  expect_tame_refusal(run_plain({"plan", "--" + kForged}), 64);
  expect_tame_refusal(run_plain({"plan", "--source", trained(0), "--fan-out", kForged}), 64);
  expect_tame_refusal(run_plain({"plan", "--source", trained(0), "--inference", kForged}), 64);
  expect_tame_refusal(run_plain({"plan", "--source", trained(0)}, {{"WEIGHTCAST_BUCKET_SIZE", kForged}}), 64);
  expect_tame_refusal(run_job(2, {"sync", "--" + kForged}), 64);
  // In a file a line ends where it ends.
  put_file(dir_ / "options", "buffers = x\x1b[2J\n");
  expect_tame_refusal(run_plain({"plan", "--source", trained(0), "--config", dir_ / "options"}), 64,
                      R"(x\x1b[2J)");
  const Outcome noted = run_plain({"inspect", trained(0)}, {{"WEIGHTCAST_\x1b[2J\n", "1"}});
  EXPECT_TRUE(done(noted));
  expect_tame(noted.err, R"(WEIGHTCAST_\x1b[2J\n)");
}

TEST_F(Terminal, ClosedFullAndBrokenStreamsOfTheLog) {
  EXPECT_TRUE(done(run_plain({"convert", "--source", trained(0), "--output", dir_ / "expected"})));
  const auto expected = folder_contents(dir_ / "expected");
  for (const std::string& redirection : Words{"2>&-", "2>/dev/full", "2>&3", "0<&- 2>&-"}) {
    // A note that has nowhere to go must not land in the file.
    CommandLine command =
        redirected(redirection, {"convert", "--source", trained(0), "--output", dir_ / "copy"});
    command.environment = {{"WEIGHTCAST_NOTED", "1"}};
    EXPECT_TRUE(done(run(command))) << redirection;
    EXPECT_TRUE(folder_contents(dir_ / "copy") == expected) << redirection;
    // Nor does it change the code of a failure.
    EXPECT_EQ(run(redirected(redirection, {"inspect", dir_ / "absent"})).exit_code, 74) << redirection;
    std::filesystem::remove_all(dir_ / "copy");
  }
}

TEST_F(Terminal, AReportThatNobodyGetsIsAnError) {
  for (const std::string& redirection : Words{"1>&-", "0<&- 1>&-", "1>/dev/full", "1>&3"}) {
    const std::string output = dir_ / "copy.h5";
    CommandLine command = redirected(redirection, {"convert", "--source", trained(0), "--output", output});
    EXPECT_TRUE(refused(run(command), 74, {"the report on stdout"})) << redirection;
    EXPECT_TRUE(done(run_plain({"inspect", output})));
    std::filesystem::remove(output);
  }
}

TEST_F(Terminal, JobsWithoutALog) {
  // mpirun gives its ranks streams of its own, which a rank that closes them has to do itself.
  const Words words = sync_words(trained(0)) + Words{"--progress", "always"};
  for (const std::string& redirection : Words{"2>&-", "2>/dev/full"}) {
    CommandLine command = mpirun(3, redirected(redirection, words).words);
    EXPECT_TRUE(done(run(command))) << redirection;
    EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", trained(0)})));
  }
}

}  // namespace
}  // namespace weightcast::test_support
