// Updates of a part of the model into engines that run: what they have afterwards, and what it is called.

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <stop_token>
#include <thread>

#include "engine/published.hpp"
#include "serve/server.hpp"
#include "storage/checkpoint.hpp"
#include "support/client_call.hpp"
#include "support/files.hpp"

namespace weightcast::test_support {

namespace {

bool is_of_experts(const std::string& parameter) {
  return parameter.find(".experts.") != std::string::npos;
}

class PartialUpdates : public LiveServers {
 protected:
  /// A job of its own, from the trainers of `from`, or this folder's.
  Outcome sync(const Words& more, const std::string& from = "") const {
    Words words{WEIGHTCAST_BINARY, "sync",
                "--source",        "live:" + (from.empty() ? folder_ : from),
                "--sink",          "live:" + folder_,
                "--model",         model_of_step(0),
                "--inference",     "tp=2,ep=2,replicas=2",
                "--timeout",       "100"};
    const bool own = from.empty();
    words.insert(words.end(), {"--trainers", own ? "2" : "1"});
    words.insert(words.end(), more.begin(), more.end());
    return run(mpirun((own ? 2 : 1) + LiveModel::kEngines, words));
  }

  Outcome verify(int step, const Words& more) const {
    Words words{WEIGHTCAST_BINARY,   "verify",      "live:" + folder_,     "--source",
                model_of_step(step), "--inference", "tp=2,ep=2,replicas=2"};
    words.insert(words.end(), more.begin(), more.end());
    return run({words, {}});
  }

  /// What the folder's last record says.
  nlohmann::json record() const {
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
      if (entry.path().filename().string().starts_with("commit-"))
        return nlohmann::json::parse(get_file(entry.path().string()));
    }
    return {};
  }
};

void expect_done(const Outcome& outcome, const Words& says) {
  EXPECT_EQ(outcome.exit_code, 0) << describe(outcome);
  for (const std::string& words : says) {
    EXPECT_NE((outcome.out + outcome.err).find(words), std::string::npos)
        << words << ": " << describe(outcome);
  }
}

/// An engine's loop, which takes every update.
std::jthread answering(const engine::Published& module) {
  return std::jthread([&module](const std::stop_token& stop) {
    for (; !stop.stop_requested(); std::this_thread::sleep_for(std::chrono::milliseconds(1))) {
      std::int64_t version = 0;
      if (weightcast_wanted(module.handle(), &version) != 1) continue;
      if (weightcast_pause(module.handle(), 60, &version) == WEIGHTCAST_OK)
        weightcast_resume(module.handle());
    }
  });
}

TEST_F(PartialUpdates, ExpertsAloneAreWritten) {
  model_.offer(1);
  const std::string json = dir_ / "report.json";
  expect_done(sync({"--include", "*.experts.*", "--json", json}),
              {" partial\n", "# partial 72 of 102 tensors"});
  EXPECT_TRUE(model_.settle());
  EXPECT_EQ(model_.difference([](const std::string& name) { return is_of_experts(name) ? 1 : 0; }), "");
  const auto report = nlohmann::json::parse(get_file(json));
  EXPECT_EQ(report.at("model").at("tensors"), 102);
  EXPECT_EQ(report.at("partial").at("tensors"), 72);
  EXPECT_EQ(report.at("partial").at("staying_tensors"), 30);
  EXPECT_EQ(report.at("partial").at("bytes").get<std::int64_t>() +
                report.at("partial").at("staying_bytes").get<std::int64_t>(),
            report.at("model").at("bytes"));
  EXPECT_EQ(report.at("left_out"), nullptr);
  EXPECT_EQ(record().at("version"), 1);
  EXPECT_EQ(record().at("partial").at("tensors"), 72);
  expect_done(run({{WEIGHTCAST_BINARY, "inspect", "live:" + folder_}, {}}),
              {"# version 1 was committed by update 1, a partial one: 72 of 102 tensors"});
  // What was sent is the one version's, all else the other's.
  expect_done(verify(181, {"--include", "*.experts.*"}), {"serve version 1", ": 72 of 102 tensors"});
  expect_done(verify(0, {"--exclude", "*.experts.*"}), {": 30 of 102 tensors"});
  EXPECT_EQ(verify(181, {}).exit_code, 66);
}

TEST_F(PartialUpdates, PartsOfParametersStayToTheByte) {
  const Words patterns{"--include", "*.experts.[1-6].gate_proj.weight", "--include",
                       "model.layers.1.self_attn.v_proj.weight"};
  model_.offer(1);
  expect_done(sync(patterns), {" partial\n"});
  expect_done(verify(181, patterns), {": 19 of 102 tensors"});
  expect_done(verify(0, {"--exclude", patterns[1], "--exclude", patterns[3]}), {": 83 of 102 tensors"});
}

TEST_F(PartialUpdates, APartIsNotTakenForTheWhole) {
  const Words experts{"--include", "*.experts.*"};
  model_.offer(1);
  expect_done(sync(experts), {" partial\n"});
  model_.offer(1);
  expect_done(sync(experts), {"version 1 is there already"});
  // The same said otherwise.
  model_.offer(1);
  expect_done(sync({"--include", "*.experts.*_proj.*"}), {"version 1 is there already"});
  // Another part of the same version, and all of it, are sent.
  model_.offer(1);
  expect_done(sync({"--exclude", "*.experts.*"}), {" partial\n", "but in part alone; it is sent"});
  EXPECT_EQ(model_.difference(1), "");
  EXPECT_EQ(record().at("partial").at("tensors"), 30);
  model_.offer(1);
  expect_done(sync({}), {" yes\n"});
  EXPECT_FALSE(record().contains("partial"));
  // After the whole version each part is there.
  model_.offer(1);
  expect_done(sync(experts), {"version 1 is there already"});
}

TEST_F(PartialUpdates, AServerDoesNotTakeAPartForTheWhole) {
  const auto server = serve();
  ASSERT_NO_FATAL_FAILURE(expect_update(1));
  model_.offer(2);
  expect_done(sync({"--include", "*norm*"}), {" partial\n"});
  EXPECT_TRUE(model_.settle());
  model_.offer(3);
  expect_refused(trigger({"--weight-version", "2"}), 64, "the trainers offer version 3");
  model_.offer(2);
  expect_done(trigger({"--weight-version", "2"}), {" yes\n"});
  EXPECT_EQ(model_.difference(2), "");
  expect_done(trigger({"--weight-version", "2"}), {"version 2 is there already"});
}

TEST_F(PartialUpdates, AServerOfAPart) {
  const auto server = serve({"--exclude", "*.experts.*"});
  model_.offer(1);
  expect_done(trigger(), {" partial\n"});
  EXPECT_TRUE(model_.settle());
  EXPECT_EQ(model_.difference([](const std::string& name) { return is_of_experts(name) ? 0 : 1; }), "");
  expect_done(trigger({"--weight-version", "1"}), {"version 1 is there already"});
}

TEST_F(PartialUpdates, AnEngineWithoutAVersionGetsNoPart) {
  model_.invalidate_engine(2);
  model_.offer(1);
  const Outcome outcome = sync({"--include", "*.experts.*"});
  expect_refused(outcome, 64, "engine-2.json");
  EXPECT_NE(outcome.err.find("has no version of which a part could stay"), std::string::npos)
      << describe(outcome);
  EXPECT_NE(outcome.err.find("run an update without --include and --exclude first"), std::string::npos);
  // The others serve on what they had, and all of it goes everywhere.
  EXPECT_EQ(model_.version_of_engine(0), 0);
  expect_done(sync({}), {" yes\n"});
  EXPECT_EQ(model_.difference(1), "");
}

TEST_F(PartialUpdates, EnginesOfSeveralVersionsGetNoPart) {
  model_.stop_engine(1);
  model_.start_engine(1, 2);
  model_.offer(3);
  const Outcome outcome = sync({"--include", "*.experts.*"});
  expect_refused(outcome, 64, "serves version 0 and others 2");
  EXPECT_NE(outcome.err.find("run an update without --include and --exclude first"), std::string::npos)
      << describe(outcome);
  EXPECT_EQ(model_.version_of_engine(1), 2);
  expect_done(sync({}), {" yes\n"});
  EXPECT_EQ(model_.difference(3), "");
  model_.offer(4);
  expect_done(sync({"--include", "*.experts.*"}), {" partial\n"});
}

TEST_F(PartialUpdates, AModelWithoutItsDraftLayersIsNotTakenForOneWithThem) {
  const std::string source = dir_ / "drafts";
  const std::string folder = dir_ / "module";
  expect_done(run({{WEIGHTCAST_BINARY, "synth", "--model",
                    std::string(WEIGHTCAST_TEST_DATA) + "/vllm/glm4-moe/config.json", "--mtp", "include",
                    "--output", source},
                   {}}),
              {});
  engine::Published module({folder, "engine", 0, 1}, read_checkpoint(source), 0);
  const std::jthread answers = answering(module);
  const auto send = [&](const Words& more) {
    Words words{WEIGHTCAST_BINARY, "sync", "--source",          source, "--sink",           "live:" + folder,
                "--trainers",      "1",    "--inference-alloc", "hf",   "--weight-version", "5"};
    words.insert(words.end(), more.begin(), more.end());
    return run(mpirun(2, words));
  };
  const Words layer{"--mtp", "include", "--include", "model.layers.3.*"};
  expect_done(send({}), {" yes\n"});
  expect_done(send({}), {"version 5 is there already"});
  expect_done(send(layer), {" partial\n", "not known to have all that is sent now"});
  expect_done(send({"--mtp", "include"}), {" yes\n"});
  expect_done(send({"--mtp", "include"}), {"version 5 is there already"});
  expect_done(send(layer), {"version 5 is there already"});
}

TEST_F(PartialUpdates, ATrainerMayHaveOnlyWhatIsSent) {
  Checkpoint part = read_checkpoint(model_of_step(181));
  std::erase_if(part.tensors, [](const StoredTensor& tensor) { return !is_of_experts(tensor.name); });
  const std::string folder = dir_ / "adapters";
  engine::Published trainer({folder, "trainer", 0, 1}, part, 0);
  check(weightcast_offer(trainer.handle(), 5, 0));
  expect_refused(sync({}, folder), 65, "is missing");
  expect_done(sync({"--include", "*.experts.*"}, folder), {" partial\n"});
  EXPECT_EQ(model_.difference([](const std::string& name) { return is_of_experts(name) ? 5 : 0; }), "");
}

TEST_F(PartialUpdates, AnEngineThatHasTheModelsOwnTensors) {
  const std::string folder = dir_ / "module";
  engine::Published module({folder, "engine", 0, 1}, read_checkpoint(model_of_step(0)), 0);
  const std::jthread answers = answering(module);
  model_.offer(1);
  expect_done(run(mpirun(3, {WEIGHTCAST_BINARY, "sync", "--source", "live:" + folder_, "--sink",
                             "live:" + folder, "--model", model_of_step(0), "--trainers", "2",
                             "--inference-alloc", "hf", "--include", "*.experts.[0-3].*"})),
              {" partial\n"});
  const auto compare = [&](int step, const Words& more) {
    Words words{WEIGHTCAST_BINARY,   "verify", "live:" + folder, "--source", model_of_step(step),
                "--inference-alloc", "hf"};
    words.insert(words.end(), more.begin(), more.end());
    return run({words, {}});
  };
  expect_done(compare(181, {"--include", "*.experts.[0-3].*"}), {": 36 of 102 tensors"});
  expect_done(compare(0, {"--exclude", "*.experts.[0-3].*"}), {": 66 of 102 tensors"});
}

}  // namespace

}  // namespace weightcast::test_support
