// Sources that somebody replaces or writes to while a job is at work.

#include "cli/cli.hpp"

namespace weightcast::test_support {
namespace {

class Changes : public CliTest {
 protected:
  /// Makes a checkpoint of two files of one of the trained model's versions, as other programs write them:
  /// the headers of all versions are the same.
  std::string two_files(int step, const std::string& name) const {
    const std::string folder = dir_ / name;
    SafetensorsFile first;
    SafetensorsFile second;
    for (const auto& [tensor, data] : SafetensorsFile::read(trained(step) + "/model.safetensors").tensors) {
      const bool late = tensor.find("layers.2.") != std::string::npos || tensor == "model.norm.weight";
      (late ? second : first).tensors[tensor] = data;
    }
    put_file(folder + "/config.json", get_file(trained(step) + "/config.json"));
    first.write(folder + "/model-00001-of-00002.safetensors");
    second.write(folder + "/model-00002-of-00002.safetensors");
    return folder;
  }

  /// A job in which file `target` is changed when `watched` is read for the k-th time: replaced, if `by`
  /// names a file.
  static Outcome run_changing(const Words& words, const std::string& watched, int k,
                              const std::string& target, const std::string& by = "") {
    Variables environment{{"LD_PRELOAD", WEIGHTCAST_CHANGE_FILE},
                          {"CHANGE_WHEN_READ", watched},
                          {"CHANGE_AT", std::to_string(k)},
                          {"CHANGE_TARGET", target}};
    if (!by.empty()) environment.emplace("CHANGE_BY", by);
    return run_job(3, words, environment);
  }

  // The header is read in fewer.
  static constexpr int kAmidTheUpdate = 12;
};

TEST_F(Changes, AFileThatIsReplacedBeforeItsTurnIsRefused) {
  const std::string source = two_files(0, "source");
  const std::string second = source + "/model-00002-of-00002.safetensors";
  for (const int k : {1, 3, kAmidTheUpdate}) {
    // Of the same size, with the same header.
    const std::string other = two_files(1, "other") + "/model-00002-of-00002.safetensors";
    put_old_shards();
    const auto before = folder_contents(sink_);
    const Outcome outcome = run_changing(sync_words(source) + Words{"--read-threads", "1"},
                                         "model-00001-of-00002.safetensors", k, second, other);
    // Where it was replaced before anybody had looked at it, all of it is the new one.
    if (outcome.exit_code == 0) {
      EXPECT_LT(k, kAmidTheUpdate);
      EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", source})));
    } else {
      EXPECT_TRUE(refused(outcome, 74, {second, "changed after its header was read", "start again"}));
      EXPECT_EQ(folder_contents(sink_), before);
    }
  }
}

TEST_F(Changes, AnOnlyFileThatIsReplacedWhileItIsReadIsRefused) {
  const std::string source = dir_ / "source";
  std::filesystem::copy(trained(0), source);
  std::filesystem::copy_file(trained(1) + "/model.safetensors", dir_ / "other");
  const std::string file = source + "/model.safetensors";
  put_old_shards();
  const auto before = folder_contents(sink_);
  const Outcome outcome =
      run_changing(sync_words(source), "source/model.safetensors", kAmidTheUpdate, file, dir_ / "other");
  EXPECT_TRUE(refused(outcome, 74, {file, "changed after its header was read", "start again"}));
  EXPECT_EQ(folder_contents(sink_), before);
}

TEST_F(Changes, AFileThatIsWrittenToWhileItIsReadIsRefused) {
  const std::string source = two_files(0, "source");
  const std::string first = source + "/model-00001-of-00002.safetensors";
  put_old_shards();
  const auto before = folder_contents(sink_);
  const Outcome outcome =
      run_changing(sync_words(source), "model-00001-of-00002.safetensors", kAmidTheUpdate, first);
  EXPECT_TRUE(refused(outcome, 74, {first, "changed after its header was read"}));
  EXPECT_EQ(folder_contents(sink_), before);
}

TEST_F(Changes, TextsBesideTheWeightsMustStayToo) {
  const std::string source = two_files(0, "source");
  const std::string config = source + "/config.json";
  const std::string index = source + "/model.safetensors.index.json";
  const std::string quantization = source + "/hf_quant_config.json";
  const std::string output = dir_ / "output";
  nlohmann::json files;
  for (const char* file : {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}) {
    for (const auto& [name, data] : SafetensorsFile::read(source + "/" + file).tensors) files[name] = file;
  }
  put_file(index, nlohmann::json{{"weight_map", files}}.dump());
  put_file(quantization, R"({"quantization": {"kv_cache_quant_algo": "FP8"}})");
  for (const std::string& text : {config, index, quantization}) {
    SCOPED_TRACE(text);
    const Variables change{{"LD_PRELOAD", WEIGHTCAST_CHANGE_FILE},
                           {"CHANGE_WHEN_READ", "model-00001-of-00002.safetensors"},
                           {"CHANGE_AT", std::to_string(kAmidTheUpdate)},
                           {"CHANGE_TARGET", text},
                           {"CHANGE_BY", text + ".new"}};
    // Replaced by the same text: it may as well be of the next saving.
    const auto again = [&] { std::filesystem::copy_file(text, text + ".new"); };
    for (const Words& how : {Words{}, Words{"--to", "hf"}}) {
      again();
      EXPECT_TRUE(refused(run_plain(Words{"convert", "--source", source, "--output", output} + how, change),
                          74, {text, "changed after it was read", "start again"}));
      EXPECT_FALSE(std::filesystem::exists(output));
    }
    again();
    EXPECT_TRUE(refused(run_job(3, sync_words(source), change), 74, {text, "changed after it was read"}));
    EXPECT_FALSE(std::filesystem::exists(sink_ + "/rank-0.h5"));
  }
}

TEST_F(Changes, ALaterSourceIsTheOneThatIsThereAtItsTurn) {
  const std::string first = dir_ / "first.safetensors";
  const std::string later = dir_ / "later.safetensors";
  const std::string newer = dir_ / "newer.safetensors";
  put_file(dir_ / "config.json", get_file(trained(0) + "/config.json"));
  put_file(first, get_file(trained(0) + "/model.safetensors"));
  put_file(later, get_file(trained(0) + "/model.safetensors"));
  put_file(newer, get_file(trained(181) + "/model.safetensors"));
  EXPECT_TRUE(done(run_changing(sync_words(first) + Words{"--source", later}, "first.safetensors",
                                kAmidTheUpdate, later, newer)));
  EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", trained(181), "--weight-version", "1"})));
}

TEST_F(Changes, ShardsThatAreReplacedWhileTheyAreComparedAreRefused) {
  put_old_shards();
  const std::string source = two_files(0, "source");
  EXPECT_TRUE(done(run_job(3, sync_words(source) + Words{"--weight-version", "7"})));
  // Of another version, and whole: what the attributes said does not hold for it.
  const std::string other = dir_ / "other";
  EXPECT_TRUE(done(run_job(3, {"sync", "--source", source, "--inference", "tp=2", "--sink", "hdf5:" + other,
                               "--weight-version", "8"})));
  const std::string shard = sink_ + "/rank-1.h5";
  EXPECT_TRUE(refused(run_plain({"verify", sink_, "--source", source},
                                {{"LD_PRELOAD", WEIGHTCAST_CHANGE_FILE},
                                 {"CHANGE_WHEN_READ", "model-00001-of-00002.safetensors"},
                                 {"CHANGE_AT", "1"},
                                 {"CHANGE_TARGET", shard},
                                 {"CHANGE_BY", other + "/rank-1.h5"}}),
                      74, {shard, "replaced or written to", "run verify again"}));
}

TEST_F(Changes, ShardsOfTrainersAreAsGood) {
  const std::string shards = dir_ / "shards-of-trainers";
  const Words layout{"--trainer-alloc", "megatron:t1"};
  EXPECT_TRUE(done(
      run_plain(Words{"convert", "--source", trained(0), "--to", "megatron", "--output", shards} + layout)));
  put_old_shards();
  const auto before = folder_contents(sink_);
  const Outcome outcome = run_changing(sync_words(shards) + layout, "trainer-0.safetensors", 40,
                                       shards + "/trainer-0.safetensors");
  EXPECT_TRUE(refused(outcome, 74, {"trainer-0.safetensors", "changed after its header was read"}));
  EXPECT_EQ(folder_contents(sink_), before);
}

}  // namespace
}  // namespace weightcast::test_support
