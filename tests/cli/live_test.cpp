// Plain commands that look at trainers and engines that run. Each exporter is a process of its own.

#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <string_view>
#include <thread>
#include <utility>

#include "cli/cli.hpp"
#include "engine/published.hpp"
#include "model/family.hpp"
#include "support/child.hpp"
#include "support/landing_json.hpp"
#include "support/other_user.hpp"
#include "weightcast/client.h"

namespace weightcast::test_support {
namespace {

using namespace std::chrono_literals;

class LiveCommands : public CliTest {
 protected:
  void TearDown() override {
    for (auto& child : children_) child->kill();
    // Of killed exporters, whatever became of their manifests.
    for (const std::string& stem : stems_) {
      for (const char* what : {"0", "control"}) ::shm_unlink((stem + what).c_str());
    }
  }

  /// Publishes a checkpoint's tensors, as version 1, and does `then` for ever.
  Child& start(const char* role, int rank, int ranks, const std::string& checkpoint,
               const std::function<void(engine::Published&)>& then = {}) {
    children_.push_back(std::make_unique<Child>([&] {
      engine::Published published({folder_, role, rank, ranks}, read_checkpoint(checkpoint), 1);
      if (then) then(published);
      for (;;) ::pause();
      return 0;
    }));
    const std::string path = manifest(role, rank);
    const auto give_up = std::chrono::steady_clock::now() + 30s;
    while (!std::filesystem::exists(path)) {
      if (std::chrono::steady_clock::now() > give_up) throw std::runtime_error("no " + path);
      std::this_thread::sleep_for(1ms);
    }
    const auto control = read_json(path).at("control").get<std::string>();
    stems_.push_back(control.substr(0, control.size() - std::strlen("control")));
    return *children_.back();
  }

  /// Two engines with the trained model's shards.
  void start_engines(const std::function<void(engine::Published&)>& then = {}) {
    EXPECT_TRUE(done(run_job(3, sync_words(trained(0)))));
    for (int rank = 0; rank < 2; ++rank) {
      start("engine", rank, 2, sink_ + "/rank-" + std::to_string(rank) + ".h5", then);
    }
  }

  std::string manifest(const std::string& role, int rank) const {
    return folder_ + "/" + role + "-" + std::to_string(rank) + ".json";
  }

  /// Changes the first such text of a manifest.
  static void change(const std::string& path, const std::string& from, const std::string& to) {
    std::string text = get_file(path);
    const std::size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from << " in " << text;
    put_file(path, text.replace(at, from.size(), to));
  }

  /// The names of memory in a manifest become those of a user whose number has a 9 in front.
  static void name_memory_of_user_9(const std::string& path) {
    for (const std::string memory : {"\"control\": \"/weightcast-", "\"name\": \"/weightcast-"}) {
      change(path, memory, memory + "9");
    }
  }

  /// `before` are words in front of the command.
  Outcome inspect(const Words& before = {}) const {
    return run({before + Words{WEIGHTCAST_BINARY, "inspect", "live:" + folder_}, {}});
  }
  Outcome verify(const Words& more = {"--inference", "tp=2,ep=2"}) const {
    return run_plain(Words{"verify", "live:" + folder_, "--source", trained(0)} + more);
  }

  std::string folder_ = dir_ / "weights";
  std::vector<std::unique_ptr<Child>> children_;
  std::vector<std::string> stems_;
};

/// Waits until a command says it.
template <typename Command>
::testing::AssertionResult says_in_time(Command command, const std::string& words) {
  const auto give_up = std::chrono::steady_clock::now() + 30s;
  Outcome outcome = command();
  while (outcome.out.find(words) == std::string::npos && std::chrono::steady_clock::now() < give_up) {
    outcome = command();
  }
  return has(outcome.out, {words});
}

TEST_F(LiveCommands, InspectSaysWhoHoldsWhat) {
  start("engine", 1, 2, trained(0));
  start("trainer", 0, 1, trained(0), [](auto& trainer) { weightcast_offer(trainer.handle(), 4, 100); });
  EXPECT_TRUE(says_in_time([&] { return inspect(); }, "trainer 0: offers version 4\n"));
  put_file(folder_ + "/commit-7.json", "{\"weightcast\": 1, \"update\": 7, \"version\": 1}\n");
  put_file(folder_ + "/commit-8.json", "void\n");
  const std::string json = dir_ / "report.json";
  const Outcome outcome = run_plain({"inspect", "live:" + folder_, "--json", json});
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {"1 of 1 trainers, 1 of 2 engines (missing: 0)", "shared memory",
                                "engine 1: serves version 1\n", "# update 8 is void",
                                "# version 1 was committed by update 7"}));
  const auto report = read_json(json);
  ASSERT_EQ(report.at("exporters").size(), 2);
  const auto& engine = report.at("exporters").at(1);
  EXPECT_EQ(engine.at("role"), "engine");
  EXPECT_EQ(engine.at("rank"), 1);
  EXPECT_EQ(engine.at("process"), read_json(manifest("engine", 1)).at("pid"));
  EXPECT_EQ(engine.at("entries"), 102);
  EXPECT_EQ(engine.at("version"), 1);
  EXPECT_TRUE(engine.at("lives"));
  EXPECT_EQ(report.at("commits").size(), 2);
  // An earlier report may be replaced.
  EXPECT_TRUE(done(run_plain({"inspect", "live:" + folder_, "--json", json})));
}

TEST_F(LiveCommands, InspectOfARecordOfAPart) {
  start("engine", 0, 1, trained(0));
  const std::string record = folder_ + "/commit-3.json";
  const std::string text =
      R"({"weightcast": 1, "update": 3, "version": 1, "partial": {"tensors": 2, "bytes": 8, "staying_tensors": 100,
          "staying_bytes": 1024, "choice": "0011223344556677"}})";
  put_file(record, text);
  const std::string json = dir_ / "report.json";
  const Outcome outcome = run_plain({"inspect", "live:" + folder_, "--json", json});
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(
      has(outcome.out, {"# version 1 was committed by update 3, a partial one: 2 of 102 tensors, 8 B; the "
                        "others, 1.00 KiB, stay as they are"}));
  EXPECT_EQ(read_json(json).at("commits").at(0).at("partial").at("tensors"), 2);
  for (const auto& [from, to] : std::map<std::string, std::string>{{"\"bytes\": 8", "\"bytes\": -8"},
                                                                   {"\"choice\"", "\"chosen\""},
                                                                   {"{\"tensors\": 2", "{\"tensors\": []"}}) {
    put_file(record, text);
    change(record, from, to);
    EXPECT_TRUE(refused(inspect(), 65, {record, "of 'partial'", "remove the file"})) << to;
  }
}

TEST_F(LiveCommands, InspectOfWhatIsNotThere) {
  EXPECT_TRUE(refused(inspect(), 74, {folder_, "No such file"}));
  std::filesystem::create_directory(folder_);
  EXPECT_TRUE(refused(inspect(), 74, {folder_, "no manifest", "engine-<n>.json", "wait until"}));
  EXPECT_TRUE(refused(run_plain({"inspect", "live:"}), 64, {"live:", "folder"}));
}

TEST_F(LiveCommands, AFolderOfAnotherUserIsSaidSo) {
  std::filesystem::create_directory(folder_);
  const OtherUser other;
  if (!other.is_another()) GTEST_SKIP() << "needs root, who can be another user";
  for (const Words& command : {Words{"inspect", "live:" + folder_}, {"hosts", folder_}})
    EXPECT_TRUE(refused(run_plain(command), 74, {folder_, "Permission denied", "as the user"}));
}

TEST_F(LiveCommands, WhatIsNotPublishedYetIsSaidSo) {
  std::filesystem::create_directory(folder_);
  const std::string live = "live:" + folder_;
  const Words words{"--source", live, "--sink", live, "--model", trained(0)};
  const Words says{"trainer-0.json: is missing, though the job's layout has 1 trainer; wait until all"};
  EXPECT_TRUE(refused(run_job(2, Words{"sync"} + words), 74, says));
  EXPECT_TRUE(refused(run_job(2, Words{"serve"} + words), 74, says));
  EXPECT_TRUE(refused(run_plain(Words{"plan"} + words), 74, says));
}

TEST_F(LiveCommands, AnOfferIsNotTakenForNobody) {
  start("trainer", 0, 1, trained(0), [](auto& trainer) { weightcast_offer(trainer.handle(), 4, 100); });
  for (const char* command : {"sync", "serve"}) {
    for (const Words& sink : {Words{}, {"--sink", "none"}}) {
      EXPECT_TRUE(
          refused(run_job(2, Words{command, "--source", "live:" + folder_, "--model", trained(0)} + sink), 64,
                  {"--source live:DIR", "--sink live:DIR"}));
    }
  }
  EXPECT_TRUE(has(inspect().out, {"trainer 0: offers version 4"}));
}

TEST_F(LiveCommands, InspectOfExportersThatAreElsewhereOrGone) {
  Child& engine = start("engine", 0, 1, trained(0));
  const std::string path = manifest("engine", 0);
  const std::string own = get_file(path);
  const auto says = [&](const std::string& from, const std::string& to, const std::string& words,
                        const Words& before = {}) {
    change(path, from, to);
    const Outcome outcome = inspect(before);
    EXPECT_TRUE(done(outcome));
    EXPECT_TRUE(has(outcome.out, {words}));
    put_file(path, own);
  };
  says("\"host\": \"", "\"host\": \"x\\u001b[2J", "engine 0: not seen from here\n");
  says("\"boot_id\": \"", "\"boot_id\": \"x", "started anew");
  name_memory_of_user_9(path);
  says("\"uid\": ", "\"uid\": 9", "not seen from here: it is of user 9");
  says("\"shm\": ", "\"shm\": 9", "another /dev/shm");
  says("\"uid\": ", "\"job\": \"77\", \"uid\": ", "of Slurm job 77, not of this one (Slurm job 78)",
       {"env", "SLURM_JOB_ID=78"});
  says("\"uid\": ", "\"job\": \"78\", \"restart\": \"1\", \"uid\": ",
       "of Slurm job 78, restart 1, not of this one", {"env", "SLURM_JOB_ID=78"});
  change(path, "\"uid\": ", "\"job\": \"77\", \"uid\": ");
  const Outcome hosts = run({{"env", "SLURM_JOB_ID=78", WEIGHTCAST_BINARY, "hosts", folder_}, {}});
  EXPECT_TRUE(done(hosts));
  EXPECT_TRUE(has(hosts.err, {path, "of Slurm job 77"}));
  put_file(path, own);
  says("\"generation\": \"", "\"layout\": \"\\u001b[2J\", \"generation\": \"", "\\x1b[2J");
  engine.kill();
  const Outcome outcome = inspect();
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {"engine 0: ", "gone"}));
}

TEST_F(LiveCommands, TheDeadAreNotTakenForPresent) {
  start_engines();
  const std::string path = manifest("engine", 1);
  children_[1]->kill();
  const Words plan{"plan", "--sink", "live:" + folder_, "--model", trained(0), "--inference", "tp=2,ep=2"};
  const std::string json = dir_ / "report.json";
  for (const bool cleared : {false, true}) {
    const Outcome outcome = run_plain({"inspect", "live:" + folder_, "--json", json});
    EXPECT_TRUE(done(outcome));
    // Whoever publishes on this host meanwhile, another test for example, clears the dead's block away.
    const bool is_there = std::filesystem::exists("/dev/shm" + stems_[1] + "control");
    const std::string state = is_there ? "; its last state: serves version 1" : "";
    EXPECT_TRUE(has(outcome.out, {"no trainers, 1 of 2 engines (gone: 1)", "has died" + state}));
    if (cleared) {
      EXPECT_TRUE(has(outcome.out, {"has died, and its state with it"}));
    }
    EXPECT_FALSE(read_json(json).at("exporters").at(1).at("lives"));
    EXPECT_TRUE(refused(run_plain(plan), 74, {path, "is gone; start it again"}));
    const Outcome hosts = run_plain({"hosts", folder_});
    EXPECT_TRUE(done(hosts));
    EXPECT_TRUE(has(hosts.out, {"engine 1 (gone)"}));
    EXPECT_TRUE(has(hosts.err, {path, "start it again"}));
    // As the next publication of this user does.
    for (const char* what : {"0", "control"}) ::shm_unlink((stems_[1] + what).c_str());
  }
}

TEST_F(LiveCommands, ACopyOfAFolderIsNotTheExporters) {
  start_engines();
  const std::string copy = dir_ / "copy";
  std::filesystem::copy(folder_, copy);
  EXPECT_TRUE(refused(run_job(3, {"sync", "--source", trained(181), "--sink", "live:" + copy, "--inference",
                                  "tp=2,ep=2", "--weight-version", "5"}),
                      74, {copy + "/engine-0.json", "is a copy", "name that one"}));
  EXPECT_TRUE(has(run_plain({"inspect", "live:" + copy}).out, {"engine 0: a copy of a manifest"}));
  EXPECT_TRUE(has(run_plain({"hosts", "--clean", copy}).out, {"kept: " + copy + "/engine-0.json"}));
  EXPECT_TRUE(std::filesystem::exists("/dev/shm" + stems_[0] + "control"));
  // The same folder by another name is the same.
  std::filesystem::rename(folder_, dir_ / "moved");
  std::filesystem::create_directory_symlink(dir_ / "moved", folder_);
  EXPECT_TRUE(has(inspect().out, {"engine 0: serves version 1\n"}));
}

TEST_F(LiveCommands, ABlockThatNobodyMayReadIsAFailedLook) {
  start("engine", 0, 1, trained(0));
  const std::string control = "/dev/shm" + stems_[0] + "control";
  std::filesystem::rename(control, control + "-aside");
  // For root, who may read anything.
  std::filesystem::create_symlink(control + "-aside", control);
  EXPECT_TRUE(refused(inspect(), 74, {manifest("engine", 0), "cannot be opened"}));
  std::filesystem::remove(control);
  std::filesystem::rename(control + "-aside", control);
}

TEST_F(LiveCommands, AFolderOfManifestsIsNoCheckpoint) {
  start("trainer", 0, 1, trained(0));
  const std::string hint = "is live:" + folder_ + " meant?";
  EXPECT_NE(run_plain({"inspect", folder_}).exit_code, 0);
  EXPECT_TRUE(has(run_plain({"inspect", folder_}).err, {hint}));
  EXPECT_TRUE(has(run_job(2, {"sync", "--source", folder_}).err, {hint}));
  EXPECT_TRUE(has(run_job(2, {"sync", "--source", folder_, "--model", trained(0)}).err, {hint}));
}

TEST_F(LiveCommands, AdviceOnWhatIsPublishedIsNotOnFiles) {
  start("trainer", 0, 1, trained(0));
  const std::string path = manifest("trainer", 0);
  const std::string own = get_file(path);
  const Words plan{"plan", "--source", "live:" + folder_, "--model", trained(0)};
  EXPECT_TRUE(done(run_plain(plan)));
  const auto more = read_json(path);
  const auto add = [&](const std::string& name) {
    auto changed = more;
    changed.at("entries").push_back(more.at("entries").at(0));
    changed.at("entries").back().update({{"name", name}, {"shape", {1}}, {"strides", {1}}});
    // Behind all others, so that nothing overlaps.
    const auto bytes = more.at("segments").at(0).at("bytes").get<std::int64_t>();
    changed.at("entries").back()["offset"] = bytes;
    changed.at("segments").at(0)["bytes"] = bytes + 64;
    put_file(path, changed.dump());
    return run_plain(plan);
  };
  EXPECT_TRUE(refused(add("v_head.weight"), 65, {path, "v_head", "publish the weights alone"}));
  EXPECT_TRUE(refused(add("model.extra.weight"), 65, {path, "model.extra.weight", "do not publish"}));
  auto fewer = more;
  fewer.at("entries").erase(0);
  put_file(path, fewer.dump());
  EXPECT_TRUE(refused(run_plain(plan), 65, {path, "is missing", "it has not been published"}));
  put_file(path, own);
}

TEST_F(LiveCommands, WhatAControlBlockHoldsReachesNoTerminal) {
  start("engine", 0, 1, trained(0));
  const std::string control = "/dev/shm" + read_json(manifest("engine", 0)).at("control").get<std::string>();
  // Its reason: behind magic, generation, word, two versions, two numbers and the owner.
  constexpr std::size_t kReason = 5 * 8 + 2 * 4 + 256;
  std::fstream block(control, std::ios::in | std::ios::out | std::ios::binary);
  block.seekp(kReason);
  block << "\x1b[2J\nweightcast: error: forged";
  block.close();
  const Outcome outcome = inspect();
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {R"(\x1b[2J\nweightcast: error: forged)"}));
  EXPECT_EQ(outcome.out.find('\x1b'), std::string::npos);
}

TEST_F(LiveCommands, AWrongManifestHidesNoOther) {
  start("engine", 0, 2, trained(0));
  start("engine", 1, 2, trained(0));
  const std::string path = manifest("engine", 0);
  const std::string own = get_file(path);
  const std::vector<std::array<std::string, 3>> wrongs{
      {"\"weightcast\": 1", "\"weightcast\": 2", "'weightcast'"},
      {"\"bytes\": ", "\"bytes\": 1, \"was\": ", "beyond its segment"},
      {"\"strides\": [", "\"strides\": [1, ", "'strides'"},
      {"\"shape\": [", "\"shape\": [4000000000, ", "'strides'"},
      {"\"rank\": 0", "\"rank\": 1", "says that it is engine 1"},
      {"\"entries\"", "entries", "line"}};
  for (const auto& [from, to, says] : wrongs) {
    change(path, from, to);
    const Outcome outcome = inspect();
    EXPECT_TRUE(refused(outcome, 65, {path, says}));
    EXPECT_TRUE(has(outcome.out, {"engine 0: " + path, "engine 1: serves version 1\n"}));
    // Other commands need all of them.
    EXPECT_TRUE(refused(run_plain({"hosts", folder_}), 65, {path}));
    put_file(path, own);
  }
  // An entry that begins inside another.
  auto overlapping = read_json(path);
  overlapping.at("entries").at(1).at("offset") = overlapping.at("entries").at(0).at("offset");
  put_file(path, overlapping.dump());
  EXPECT_TRUE(refused(inspect(), 65, {path, "overlap"}));
}

TEST_F(LiveCommands, HostsPutsTrainersInFrontOfEngines) {
  start("engine", 0, 2, trained(0));
  start("engine", 1, 2, trained(0));
  start("trainer", 0, 1, trained(0));
  for (const auto& [path, host] : {std::pair(manifest("engine", 0), "b.site"),
                                   {manifest("engine", 1), "a-1"},
                                   {manifest("trainer", 0), "c_2"}}) {
    change(path, "\"host\": \"" + read_json(path).at("host").get<std::string>(),
           std::string("\"host\": \"") + host);
  }
  const Outcome outcome = run_plain({"hosts", folder_});
  EXPECT_TRUE(done(outcome));
  EXPECT_EQ(run_plain({"hosts", "live:" + folder_}).out, outcome.out);
  EXPECT_TRUE(
      has(outcome.out, {"0     trainer 0     c_2", "1      engine 0  b.site", "2      engine 1     a-1"}));
  const std::string file = dir_ / "ranks";
  const Outcome rankfile = run_plain({"hosts", folder_, "--format", "rankfile"});
  EXPECT_TRUE(done(rankfile));
  EXPECT_TRUE(has(rankfile.out, {"\nrank 0=c_2 slot=S*\nrank 1=b.site slot=S*\nrank 2=a-1 slot=S*\n"}));
  EXPECT_TRUE(done(run_plain({"hosts", folder_, "--format", "rankfile", "--output", file})));
  EXPECT_EQ(get_file(file), rankfile.out);
  // One's own file may be replaced, nobody else's.
  EXPECT_TRUE(done(run_plain({"hosts", folder_, "--format", "hostlist", "--output", file})));
  EXPECT_TRUE(has(get_file(file), {"\nc_2\nb.site\na-1\n"}));
  put_file(file, "mine");
  EXPECT_TRUE(refused(run_plain({"hosts", folder_, "--format", "rankfile", "--output", file}), 64, {file}));
  EXPECT_EQ(get_file(file), "mine");
}

TEST_F(LiveCommands, HostsWhereTrainersReadFilesOrAreEngines) {
  start("engine", 0, 1, trained(0));
  const std::string host = read_json(manifest("engine", 0)).at("host");
  EXPECT_TRUE(has(run_plain({"hosts", folder_, "--trainers", "2", "--format", "hostlist"}).out,
                  {"\n" + host + "\n" + host + "\n" + host + "\n"}));
  EXPECT_TRUE(has(run_plain({"hosts", folder_, "--colocate", "--format", "rankfile"}).out,
                  {"\nrank 0=" + host + " slot=S*\n"}));
  start("trainer", 0, 1, trained(0));
  EXPECT_TRUE(has(run_plain({"hosts", folder_, "--colocate"}).out, {"trainer 0 + engine 0"}));
  const std::string path = manifest("trainer", 0);
  const std::string own = get_file(path);
  change(path, "\"host\": \"" + host, "\"host\": \"elsewhere");
  EXPECT_TRUE(refused(run_plain({"hosts", folder_, "--colocate"}), 65, {path, "elsewhere", "--colocate"}));
  put_file(path, own);
  // A line of its own in a launcher's file.
  change(path, "\"host\": \"", "\"host\": \"a slot=0\\nrank 1=");
  EXPECT_TRUE(refused(run_plain({"hosts", folder_, "--format", "rankfile"}), 65, {path, "'host'"}));
  put_file(path, own);
  change(path, "\"ranks\": 1", "\"ranks\": 2");
  EXPECT_TRUE(refused(run_plain({"hosts", folder_}), 74, {"trainer-1.json", "missing"}));
}

TEST_F(LiveCommands, HostsRefusesRanksThatShareAGpu) {
  start("engine", 0, 1, trained(0));
  start("trainer", 0, 1, trained(0));
  for (const char* role : {"engine", "trainer"}) {
    auto text = read_json(manifest(role, 0));
    auto& segment = text.at("segments").at(0);
    segment = {{"kind", "cuda_ipc"},
               {"handle", std::string(128, '0')},
               {"bytes", segment.at("bytes")},
               {"device", "GPU-00000000-0000-0000-0000-000000000000"}};
    put_file(manifest(role, 0), text.dump());
  }
  EXPECT_TRUE(refused(run_plain({"hosts", folder_}), 65, {"GPU-00000000", "trainer 0", "--colocate"}));
  const Outcome outcome = run_plain({"hosts", folder_, "--colocate"});
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {"GPU-00000000-0000-0000-0000-000000000000"}));
}

TEST_F(LiveCommands, WrongWordsForHosts) {
  EXPECT_TRUE(refused(run_plain({"hosts"}), 64, {"DIR"}));
  EXPECT_TRUE(refused(run_plain({"hosts", folder_, "--format", "tape"}), 64, {"--format", "rankfile"}));
  EXPECT_TRUE(refused(run_plain({"hosts", folder_, "--output", "x"}), 64, {"--output", "--format"}));
  EXPECT_TRUE(
      refused(run_plain({"hosts", folder_, "--clean", "--format", "rankfile"}), 64, {"--clean", "--format"}));
  EXPECT_TRUE(refused(run_plain({"hosts", folder_, "--clean"}), 74, {folder_}));
}

TEST_F(LiveCommands, AJobRunsWhereTheRankfileSays) {
  start_engines([](auto& engine) {
    std::int64_t version = 0;
    if (weightcast_pause(engine.handle(), 100, &version) == 0) weightcast_resume(engine.handle());
  });
  start("trainer", 0, 1, trained(181), [](auto& trainer) { weightcast_offer(trainer.handle(), 5, 100); });
  const std::string file = dir_ / "ranks";
  EXPECT_TRUE(done(run_plain({"hosts", folder_, "--format", "rankfile", "--output", file})));
  CommandLine command = mpirun(3, {});
  command.words = {command.words.front(),
                   "-rf",
                   file,
                   "-n",
                   "3",
                   WEIGHTCAST_BINARY,
                   "sync",
                   "--source",
                   "live:" + folder_,
                   "--sink",
                   "live:" + folder_,
                   "--model",
                   trained(0),
                   "--inference",
                   "tp=2,ep=2"};
  EXPECT_TRUE(done(run(command)));
  EXPECT_TRUE(says_in_time([&] { return inspect(); }, "engine 1: serves version 5\n"));
  EXPECT_TRUE(has(inspect().out, {"# version 5 was committed by update 1"}));
  EXPECT_TRUE(says_in_time(
      [&] {
        return run_plain({"verify", "live:" + folder_, "--source", trained(181), "--inference", "tp=2,ep=2"});
      },
      "2 of 2 engines serve version 5"));
}

TEST_F(LiveCommands, AJobThatDiesWhileItWaitsForOffersLeavesAllAsItWas) {
  start_engines([](auto& engine) {
    std::int64_t version = 0;
    if (weightcast_pause(engine.handle(), 100, &version) == 0) weightcast_resume(engine.handle());
  });
  const std::string go = dir_ / "go";
  start("trainer", 0, 1, trained(181), [&](auto& trainer) {
    while (!std::filesystem::exists(go)) std::this_thread::sleep_for(1ms);
    weightcast_offer(trainer.handle(), 5, 100);
  });
  const CommandLine command =
      job_command(3, {"sync", "--source", "live:" + folder_, "--sink", "live:" + folder_, "--model",
                      trained(0), "--inference", "tp=2,ep=2"});
  for (const int victim : {0, 2, -1}) {
    SCOPED_TRACE(victim);
    Process job(command);
    // Engines are taken behind trainers; what is left to do is the wait.
    EXPECT_TRUE(says_in_time([&] { return inspect(); }, "engine 1: serves version 1; rank 2 on "));
    std::this_thread::sleep_for(300ms);
    if (victim < 0) {
      job.send_to_children(SIGKILL);
    } else {
      ::kill(job.children().at(static_cast<std::size_t>(victim)), SIGKILL);
    }
    EXPECT_NE(job.wait().exit_code, 0);
    const Outcome outcome = inspect();
    EXPECT_TRUE(done(outcome));
    EXPECT_TRUE(has(outcome.out,
                    {"trainer 0: trains\n", "engine 0: serves version 1\n", "engine 1: serves version 1\n"}));
    for (const auto& entry : std::filesystem::directory_iterator(folder_))
      EXPECT_FALSE(entry.path().filename().string().starts_with("commit-")) << entry.path();
  }
  put_file(go, "");
  EXPECT_TRUE(done(run(command)));
  EXPECT_TRUE(says_in_time([&] { return inspect(); }, "engine 1: serves version 5\n"));
}

TEST_F(LiveCommands, CodesOfFourBitsReachEnginesThatHaveThemAsBytes) {
  nlohmann::json config = read_json(std::string(kData) + "/vllm/gpt-oss/config.json");
  config["hidden_size"] = config["intermediate_size"] = 64;  // blocks of 32
  config["quantization_config"] = {{"quant_method", "mxfp4"}};
  put_file(dir_ / "config/config.json", config.dump());
  const std::string mxfp4 = dir_ / "config";
  const auto synthetic = [&](const std::string& model, const std::string& version) {
    const std::string folder = dir_ / ("of-" + std::string(model == mxfp4 ? "codes-" : "values-") + version);
    EXPECT_TRUE(
        done(run_plain({"synth", "--model", model, "--output", folder, "--weight-version", version})));
    return folder;
  };
  const std::string values = std::string(kData) + "/vllm/qwen3/config.json";
  struct Of {
    std::string before;
    std::string after;
    Words options;
  };
  int number = 0;
  for (const Of& of :
       {Of{synthetic(mxfp4, "1"), synthetic(mxfp4, "2"), {"--inference", "tp=1"}},
        Of{synthetic(values, "1"), synthetic(values, "2"), {"--inference", "tp=1", "--quantize", "nvfp4"}}}) {
    const std::string shards = sink_ + std::to_string(number);
    folder_ = dir_ / ("live" + std::to_string(number++));
    EXPECT_TRUE(done(
        run_job(2, Words{"sync", "--source", of.before, "--sink", "safetensors:" + shards} + of.options)));
    SafetensorsFile file = SafetensorsFile::read(shards + "/rank-0.safetensors");
    int bytes = 0;
    for (auto& [name, tensor] : file.tensors) {
      if (tensor.dtype != "F4" && tensor.dtype != "F8_E8M0") continue;
      if (tensor.dtype == "F4") tensor.shape.back() /= 2;
      tensor.dtype = "U8";
      ++bytes;
    }
    EXPECT_GT(bytes, 0);
    const std::string published = shards + ".safetensors";
    file.write(published);
    start("engine", 0, 1, published, [](auto& engine) {
      for (std::int64_t version = 0;;) {
        if (weightcast_pause(engine.handle(), 100, &version) == 0) weightcast_resume(engine.handle());
      }
    });
    EXPECT_TRUE(done(
        run_job(2, Words{"sync", "--source", of.after, "--sink", "live:" + folder_, "--weight-version", "5"} +
                       of.options)));
    EXPECT_TRUE(says_in_time(
        [&] {
          return run_plain(Words{"verify", "live:" + folder_, "--source", of.after} + of.options);
        },
        "1 of 1 engines serve version 5"));
    EXPECT_TRUE(refused(run_plain(Words{"verify", "live:" + folder_, "--source", of.before} + of.options), 66,
                        {"differs from"}));
  }
}

TEST_F(LiveCommands, TheSameNumberOfOtherFilesIsSent) {
  start_engines([](auto& engine) {
    for (std::int64_t version = 0;;) {
      if (weightcast_pause(engine.handle(), 100, &version) == 0) weightcast_resume(engine.handle());
    }
  });
  const auto sync = [&](int step) {
    return run_job(3, {"sync", "--source", trained(step), "--sink", "live:" + folder_, "--inference",
                       "tp=2,ep=2", "--weight-version", "5"});
  };
  const auto expect_weights_of = [&](int step) {
    EXPECT_TRUE(says_in_time(
        [&] {
          return run_plain(
              {"verify", "live:" + folder_, "--source", trained(step), "--inference", "tp=2,ep=2"});
        },
        "2 of 2 engines serve version 5"));
  };
  EXPECT_TRUE(done(sync(181)));
  expect_weights_of(181);
  const Outcome again = sync(181);
  EXPECT_TRUE(done(again));
  EXPECT_TRUE(has(again.err, {"version 5 is there already"}));
  const Outcome other = sync(0);
  EXPECT_TRUE(done(other));
  EXPECT_TRUE(has(other.err, {"it is sent"}));
  expect_weights_of(0);
}

TEST_F(LiveCommands, AJobThatIsToldToStopNamesTheVersionThatIsOffered) {
  start_engines();
  const std::string go = dir_ / "go";
  start("trainer", 0, 1, trained(181), [&](auto& trainer) {
    while (!std::filesystem::exists(go)) std::this_thread::sleep_for(1ms);
    weightcast_offer(trainer.handle(), 5, 100);
  });
  Process job(job_command(3, {"sync", "--source", "live:" + folder_, "--sink", "live:" + folder_, "--model",
                              trained(0), "--inference", "tp=2,ep=2"}));
  EXPECT_TRUE(says_in_time([&] { return inspect(); }, "engine 1: serves version 1; rank 2 on "));
  job.send_to_children(SIGUSR1);
  put_file(go, "");
  EXPECT_TRUE(refused(job.wait(), 75, {"before the update to version 5"}));
  EXPECT_TRUE(has(inspect().out, {"trainer 0: offers version 5", "engine 0: serves version 1\n"}));
}

TEST_F(LiveCommands, AJobBelievesNoNumberThatABlockCannotHave) {
  start_engines();
  std::fstream block("/dev/shm" + stems_[1] + "control", std::ios::in | std::ios::out | std::ios::binary);
  // The update's number, above the eight bits of the state.
  constexpr std::size_t kNumber = 16 + 1;
  block.seekp(kNumber);
  block << std::string(7, '\xff');
  block.close();
  EXPECT_TRUE(refused(run_job(3, {"sync", "--source", trained(181), "--sink", "live:" + folder_,
                                  "--inference", "tp=2,ep=2", "--weight-version", "5"}),
                      65, {manifest("engine", 1), "no update has", "publish anew"}));
}

TEST_F(LiveCommands, CleaningTakesTheDeadAlone) {
  start("engine", 0, 2, trained(0)).kill();
  start("engine", 1, 2, trained(0));
  start("trainer", 0, 1, trained(0)).kill();
  change(manifest("trainer", 0), "\"host\": \"", "\"host\": \"x");
  const Outcome outcome = run_plain({"hosts", folder_, "--clean"});
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {"removed " + manifest("engine", 0), "kept: " + manifest("trainer", 0)}));
  EXPECT_FALSE(std::filesystem::exists(manifest("engine", 0)));
  EXPECT_FALSE(std::filesystem::exists("/dev/shm" + stems_[0] + "control"));
  EXPECT_TRUE(std::filesystem::exists(manifest("engine", 1)));
  EXPECT_TRUE(std::filesystem::exists("/dev/shm" + stems_[1] + "0"));
  EXPECT_TRUE(std::filesystem::exists(manifest("trainer", 0)));
}

TEST_F(LiveCommands, MemoryWhoseManifestIsGoneIsCleaned) {
  // Whoever publishes on this host meanwhile, another test for example, may have been faster; and what others
  // have left is removed, too.
  constexpr int kMostTries = 5;
  bool removed = false;
  for (int tries = 0; tries < kMostTries && !removed; ++tries) {
    start("engine", 0, 1, trained(0)).kill();
    std::filesystem::remove(manifest("engine", 0));
    const Outcome outcome = run_plain({"hosts", folder_, "--clean"});
    EXPECT_TRUE(done(outcome));
    removed = outcome.out.find("removed /dev/shm" + stems_.back()) != std::string::npos;
  }
  EXPECT_TRUE(removed);
  EXPECT_FALSE(std::filesystem::exists("/dev/shm" + stems_.back() + "control"));
}

TEST_F(LiveCommands, VerifyComparesWhatEnginesServe) {
  start_engines();
  const std::string json = dir_ / "report.json";
  EXPECT_TRUE(done(verify({"--inference", "tp=2,ep=2", "--json", json, "--weight-version", "1"})));
  EXPECT_EQ(read_json(json).at("engines"), 2);
  EXPECT_EQ(read_json(json).at("weight_version"), 1);
  EXPECT_TRUE(
      refused(verify({"--inference", "tp=2,ep=2", "--weight-version", "2"}), 66, {"version 1", "not 2"}));
  EXPECT_TRUE(refused(verify({"--inference", "tp=4,ep=2"}), 65, {folder_, "2 engines", "--inference"}));
  EXPECT_TRUE(refused(verify({"--inference", "tp=2,ep=1"}), 65, {manifest("engine", 0), "w13_weight"}));
  EXPECT_TRUE(
      refused(run_plain({"verify", "live:" + folder_, "--source", trained(1), "--inference", "tp=2,ep=2"}),
              66, {manifest("engine", 0), "differs from"}));
  // Its memory, through the file.
  const auto entries = read_json(manifest("engine", 1)).at("entries");
  for (const auto& entry : entries) {
    if (entry.at("name") != "model.layers.1.mlp.gate.weight") continue;
    flip_bit("/dev/shm" + stems_[1] + "0", entry.at("offset").get<std::size_t>() + 5);
  }
  EXPECT_TRUE(refused(verify(), 66, {manifest("engine", 1), "model.layers.1.mlp.gate.weight"}));
}

TEST_F(LiveCommands, TheModelsOwnTensorsAreFoundAsAnUpdateFindsThem) {
  start("engine", 0, 1, trained(0));
  const Words hf{"--inference-alloc", "hf"};
  const Words plan{"plan", "--sink", "live:" + folder_, "--model", trained(0)};
  EXPECT_TRUE(done(verify(hf)));
  // Below a module of the engine's own.
  std::string text = get_file(manifest("engine", 0));
  for (std::size_t at = 0; (at = text.find("{\"name\": \"", at)) != std::string::npos; at += 10)
    text.insert(at + 10, "actor.");
  put_file(manifest("engine", 0), text);
  EXPECT_TRUE(done(verify(hf)));
  EXPECT_TRUE(done(run_plain(plan + hf)));
  const auto entry = read_json(manifest("engine", 0)).at("entries").at(5);
  flip_bit("/dev/shm" + stems_[0] + "0", entry.at("offset").get<std::size_t>());
  EXPECT_TRUE(refused(verify(hf), 66, {manifest("engine", 0)}));
}

TEST_F(LiveCommands, VerifyOfEnginesThatAreElsewhereOrGone) {
  start_engines();
  const std::string path = manifest("engine", 1);
  const std::string own = get_file(path);
  change(path, "\"host\": \"", "\"host\": \"x");
  const Outcome outcome = verify();
  EXPECT_TRUE(refused(outcome, 74, {"engine 1 on x", "run verify there"}));
  EXPECT_TRUE(has(outcome.out, {"1 of 2 engines serve version 1"}));
  put_file(path, own);
  for (const auto& [from, to] : {std::pair("\"boot_id\": \"", "\"boot_id\": \"x"),
                                 {"\"uid\": ", "\"uid\": 9"},
                                 {"\"shm\": ", "\"shm\": 9"}}) {
    if (std::string_view(from) == "\"uid\": ") name_memory_of_user_9(path);
    change(path, from, to);
    EXPECT_TRUE(refused(verify(), 74, {path}));
    put_file(path, own);
  }
  children_[1]->kill();
  EXPECT_TRUE(refused(verify(), 74, {path, "gone"}));
  std::filesystem::remove(path);
  EXPECT_TRUE(refused(verify(), 74, {"engine-1.json", "missing"}));
}

TEST_F(LiveCommands, VerifyOfEnginesThatServeNothingOrChange) {
  EXPECT_TRUE(done(run_job(3, sync_words(trained(0)))));
  start("engine", 0, 2, sink_ + "/rank-0.h5");
  start("engine", 1, 2, sink_ + "/rank-1.h5", [](auto& engine) {
    std::int64_t version = 0;
    static_cast<void>(weightcast_pause(engine.handle(), 100, &version));
  });
  // A job that is killed amid an update leaves an engine that nobody may use.
  const std::string control = "/dev/shm" + stems_[1] + "control";
  const auto set_state = [&](char state) {
    constexpr std::size_t kWord = 16;
    std::fstream block(control, std::ios::in | std::ios::out | std::ios::binary);
    block.seekp(kWord);
    block.put(state);
  };
  constexpr char kInvalid = 1;
  set_state(kInvalid);
  EXPECT_TRUE(refused(verify(), 65, {manifest("engine", 1), "invalid", "sync"}));
  constexpr char kNone = 0;
  set_state(kNone);
  EXPECT_TRUE(refused(verify(), 65, {manifest("engine", 1), "no version"}));
}

TEST_F(LiveCommands, VerifyOfAnEngineThatIsWrittenMeanwhile) {
  EXPECT_TRUE(done(run_job(3, sync_words(trained(0)))));
  const std::string other = dir_ / "other";
  EXPECT_TRUE(done(run_job(2, {"sync", "--source", trained(0), "--sink", "hdf5:" + other})));
  start("engine", 0, 1, other + "/rank-0.h5", [](auto& engine) {
    for (std::int64_t version = 2;; ++version) weightcast_serve(engine.handle(), version);
  });
  // On a busy machine a whole comparison may go by before the engine runs again.
  Outcome outcome = verify({});
  for (int i = 0; i < 50 && outcome.exit_code == 0; ++i) outcome = verify({});
  EXPECT_TRUE(refused(outcome, 74, {manifest("engine", 0), "meanwhile", "again"}));
}

TEST_F(LiveCommands, ShardsSayTheirLayoutThemselves) {
  EXPECT_TRUE(done(run_job(3, sync_words(trained(0)))));
  const Words words{"verify", sink_, "--source", trained(0)};
  for (const Words& option :
       {Words{"--inference", "tp=2"}, {"--moe-layout", "trtllm"}, {"--quantize", "fp8-block"}}) {
    EXPECT_TRUE(refused(run_plain(words + option), 64, {option.front(), "live:DIR"}));
  }
  // What the environment says may be for other commands.
  EXPECT_TRUE(done(run_plain(words, {{"WEIGHTCAST_INFERENCE", "tp=4"}})));
}

TEST_F(LiveCommands, PlanReadsManifests) {
  start_engines();
  start("trainer", 0, 2, trained(0));
  const Words words{"plan",        "--source", "live:" + folder_, "--sink", "live:" + folder_,
                    "--inference", "tp=2,ep=2"};
  const Words model{"--model", trained(0), "--trainers", "2"};
  EXPECT_TRUE(refused(run_plain(words), 64, {"live:DIR", "--model"}));
  EXPECT_TRUE(
      refused(run_plain(words + model), 74,
              {"trainer-1.json: is missing, though the job's layout has 2 trainers; wait until all"}));
  // The same manifest for another rank: nothing is mapped.
  std::string text = get_file(manifest("trainer", 0));
  put_file(manifest("trainer", 1), text.replace(text.find("\"rank\": 0"), 9, "\"rank\": 1"));
  const Outcome outcome = run_plain(words + model);
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {"4 ranks", "trainer 1", "engine 1", "cpu"}));
  const Outcome rank_plan = run_plain(words + model + Words{"--rank", "3"});
  EXPECT_TRUE(done(rank_plan));
  EXPECT_TRUE(has(rank_plan.out, {"from byte", "model.layers.2.mlp.experts.7.up_proj.weight"}));
  EXPECT_TRUE(refused(run_plain(words + model + Words{"--moe-layout", "triton-kernels"}), 65,
                      {manifest("engine", 0), "w2_weight", "--moe-layout"}));
  // What they say of themselves: another engine, other sizes, and what nobody can read.
  const auto published_by = [&](const std::string& path, const std::string& layout, const Words& trainers) {
    const std::string own = get_file(path);
    change(path, "\"generation\"", "\"layout\": \"" + layout + "\", \"generation\"");
    const Outcome planned = run_plain(words + Words{"--model", trained(0)} + trainers);
    put_file(path, own);
    return planned;
  };
  const auto published = [&](const std::string& layout) {
    return published_by(manifest("engine", 1), layout, {"--trainers", "2"});
  };
  EXPECT_TRUE(done(published("sglang:t2e2")));
  for (const std::string layout : {"vllm:t2e2", "sglang:t2", "sglang:t2e2p2", "hf"}) {
    EXPECT_TRUE(refused(published(layout), 64, {manifest("engine", 1), layout, "--inference-alloc"}));
  }
  for (const std::string layout : {"tgi:t2e2", "sglang:t2e2x", "\\u001b[2J"}) {
    EXPECT_TRUE(refused(published(layout), 65, {manifest("engine", 1), "layout", "publish anew"}));
  }
  const std::string trainer = manifest("trainer", 1);
  EXPECT_TRUE(done(published_by(trainer, "hf", {"--trainers", "2"})));
  EXPECT_TRUE(refused(published_by(trainer, "megatron:(attn:t2|ffn:t2)", {"--trainers", "2"}), 64,
                      {trainer, "megatron:(attn:t2|ffn:t2)", "no --trainer-alloc"}));
  const Words stages{"--trainer-alloc", "megatron:p2", "--stage-layers", "2,1"};
  const std::string said = "--trainer-alloc says megatron:(attn:d1p2t1c1|ffn:d1p2t1e1) --stage-layers 2,1";
  for (const std::string layout : {"hf", "megatron:t2", "megatron:p2", "megatron:p2 --stage-layers 1,2"}) {
    EXPECT_TRUE(refused(published_by(trainer, layout, stages), 64, {trainer, "layout " + layout, said}));
  }
  // The same in other words: only then are its tensors looked at, which are whole.
  EXPECT_TRUE(refused(published_by(trainer, "megatron:(attn:p2|ffn:d1) --stage-layers 2,1", stages), 65,
                      {"embedding.word_embeddings.weight"}));
  for (const std::string layout : {"tape", "megatron:x2", "megatron:\\u001b[2J"}) {
    EXPECT_TRUE(refused(published_by(trainer, layout, stages), 65, {trainer, "layout", "publish anew"}));
  }
  EXPECT_TRUE(refused(run_plain({"plan", "--sink", "tape", "--model", trained(0)}), 64, {"--sink tape"}));
  // What Slurm ended before it started the job anew is no exporter; that of another job may be one.
  const auto started = [&](const char* job, const char* restart) {
    return run_plain(words + model, {{"SLURM_JOB_ID", job}, {"SLURM_RESTART_COUNT", restart}});
  };
  change(manifest("engine", 1), "\"uid\": ", "\"job\": \"77\", \"restart\": \"1\", \"uid\": ");
  EXPECT_TRUE(done(started("77", "1")));
  EXPECT_TRUE(done(started("78", "2")));
  EXPECT_TRUE(refused(started("77", "2"), 74, {manifest("engine", 1), "of Slurm job 77, restart 1, not of"}));
  change(manifest("trainer", 1), "\"name\": \"lm_head.weight\"", "\"name\": \"lm_heap.weight\"");
  EXPECT_TRUE(refused(run_plain(words + model), 65, {manifest("trainer", 1), "lm_hea"}));
}

TEST_F(LiveCommands, PatternsOfAPlanFitWhatTrainersHave) {
  const std::string path = dir_ / "more.safetensors";
  SafetensorsFile file = SafetensorsFile::read(trained(0) + "/model.safetensors");
  file.tensors["value_head.weight"] = file.tensors.begin()->second;
  file.write(path);
  start("trainer", 0, 1, path);
  const Words plan{"plan", "--source", "live:" + folder_, "--model", trained(0), "--inference", "tp=2"};
  EXPECT_TRUE(refused(run_plain(plan), 65, {"value_head.weight"}));
  EXPECT_TRUE(done(run_plain(plan + Words{"--exclude", "value_head.*"})));
  EXPECT_TRUE(refused(run_plain(plan + Words{"--exclude", "value_head.*", "--exclude", "values.*"}), 64,
                      {"--exclude 'values.*'", "fits no tensor"}));
}

TEST_F(LiveCommands, PlanRefusesWhatAnUpdateWould) {
  start_engines();
  const std::string path = manifest("engine", 0);
  const auto own = read_json(path);
  const Words words{"plan", "--sink", "live:" + folder_, "--model", trained(0), "--inference", "tp=2,ep=2"};
  EXPECT_TRUE(done(run_plain(words)));
  // Two parameters in one memory: the update of one would be the other's.
  const std::string norm = "model.layers.0.input_layernorm.weight";
  const std::string other = "model.layers.1.input_layernorm.weight";
  auto tied = own;
  auto& entries = tied.at("entries");
  for (std::size_t i = entries.size(); i-- > 0;) {
    if (entries[i].at("name") == other) entries.erase(i);
  }
  for (auto& entry : entries) {
    if (entry.at("name") == norm) entry["aliases"] = {other};
  }
  put_file(path, tied.dump());
  EXPECT_TRUE(refused(run_plain(words), 65, {path, norm, other, "one memory"}));
  // One that nothing writes, and that would stay as it is.
  auto more = own;
  more.at("entries").push_back(own.at("entries").at(0));
  more.at("entries").back().update({{"name", "model.extra.weight"}, {"shape", {0}}, {"strides", {1}}});
  put_file(path, more.dump());
  EXPECT_TRUE(refused(run_plain(words), 65, {path, "model.extra.weight", "nothing of the model goes there"}));
  // The engine's own where a landing map says so.
  EngineLayout layout;
  layout.tp = 2;
  layout.ep = 2;
  const std::string config = trained(0) + "/config.json";
  auto map = landing_json(*make_family(ModelConfig(get_file(config), config)), layout);
  const std::string landing = dir_ / "map.json";
  const Words landed = words + Words{"--landing", landing};
  put_file(landing, map.dump());
  EXPECT_TRUE(
      refused(run_plain(landed), 65, {path, "model.extra.weight", "nothing of the model goes there"}));
  map["ranks"][0]["left"] = {{{"name", "model.extra.weight"}, {"why", "its own"}}};
  put_file(landing, map.dump());
  EXPECT_TRUE(done(run_plain(landed)));
  auto whole = own;
  whole["layout"] = "hf";
  put_file(path, whole.dump());
  EXPECT_TRUE(refused(run_plain(words), 64, {path, "layout hf", "--inference-alloc"}));
  EXPECT_TRUE(refused(verify(), 64, {path, "layout hf", "--inference-alloc"}));
}

}  // namespace
}  // namespace weightcast::test_support
