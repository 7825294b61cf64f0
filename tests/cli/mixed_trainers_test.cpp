// Trainers' shards that do not belong together, or not to their names.

#include <cstring>

#include "cli/trainers.hpp"

namespace weightcast::test_support {
namespace {

/// Shards of the trained model by the independent splitter, which writes no metadata.
void write_plain_shards(int step, const MegatronLayout& layout, const std::string& folder) {
  write_trainer_shards(shards_of(trained(step), layout), read_json(trained(step) + "/config.json"), folder,
                       ".safetensors");
}

using Mixtures = CliTest;

TEST_F(Mixtures, ReplicasOfDifferentSteps) {
  MegatronLayout layout;
  layout.c = 2;
  const std::string shards = dir_ / "trainers";
  write_plain_shards(0, layout, shards);
  write_plain_shards(181, layout, dir_ / "later");
  EXPECT_TRUE(done(run_plain({"plan", "--source", shards, "--alloc", "sglang:t1+megatron:c2"})));
  std::filesystem::copy(dir_ / "later/trainer-1.safetensors", shards,
                        std::filesystem::copy_options::overwrite_existing);
  const Words words{"--source", shards, "--alloc", "sglang:t1+megatron:c2"};
  const Words in_the_line{"trainer-", "norm", "another trainer"};
  EXPECT_TRUE(refused(run_plain(Words{"plan"} + words), 65, in_the_line));
  EXPECT_TRUE(refused(run_job(3, Words{"sync", "--sink", "hdf5:" + sink_} + words), 65, in_the_line));
  EXPECT_TRUE(refused(run_plain({"convert", "--source", shards, "--alloc", "sglang:t1+megatron:c2", "--to",
                                 "hf", "--output", dir_ / "whole"}),
                      65, in_the_line));
  EXPECT_TRUE(folder_contents(sink_).empty());
}

TEST_F(Mixtures, AShardUnderTheNameOfAnother) {
  MegatronLayout halves;
  halves.t = 2;
  const std::string copied = dir_ / "copied";
  write_plain_shards(0, halves, copied);
  const Words words{"--source", copied, "--trainer-alloc", "megatron:t2"};
  EXPECT_TRUE(done(run_plain(Words{"plan"} + words)));
  std::filesystem::remove(copied + "/trainer-1.safetensors");
  std::filesystem::create_symlink("trainer-0.safetensors", copied + "/trainer-1.safetensors");
  const Words in_the_line{copied, "trainers 0 and 1 hold the same values", "write the shards again"};
  EXPECT_TRUE(refused(run_plain(Words{"plan"} + words), 65, in_the_line));
  EXPECT_TRUE(refused(run_job(3, Words{"sync", "--sink", "hdf5:" + sink_} + words), 65, in_the_line));
  // Replicas may be one file.
  MegatronLayout layout;
  layout.c = 2;
  const std::string shards = dir_ / "replicas";
  write_plain_shards(0, layout, shards);
  std::filesystem::remove(shards + "/trainer-1.safetensors");
  std::filesystem::create_symlink("trainer-0.safetensors", shards + "/trainer-1.safetensors");
  EXPECT_TRUE(done(run_plain({"plan", "--source", shards, "--trainer-alloc", "megatron:c2"})));
}

TEST_F(Mixtures, ShardsOfWhichSomeSayWhoseTheyAre) {
  const std::string shards = dir_ / "shards";
  EXPECT_TRUE(done(run_plain({"convert", "--source", trained(0), "--to", "megatron", "--trainer-alloc",
                              "megatron:t2", "--output", shards})));
  const std::string second = shards + "/trainer-1.safetensors";
  const std::string bytes = get_file(second);
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof length);
  auto header = nlohmann::json::parse(bytes.substr(8, length));
  header["__metadata__"].erase("weightcast.trainer_rank");
  put_file(second, safetensors_bytes(header.dump(), bytes.substr(8 + length)));
  const Words words{"--source", shards, "--trainer-alloc", "megatron:t2"};
  const Words in_the_line{"trainer-1", "does not say of which trainer", "write the shards again"};
  EXPECT_TRUE(refused(run_plain(Words{"plan"} + words), 65, in_the_line));
  EXPECT_TRUE(refused(run_job(3, Words{"sync", "--sink", "hdf5:" + sink_} + words), 65, in_the_line));
}

TEST_F(Mixtures, ShardsOfTwoConversions) {
  const std::string allocation = "megatron:t2";
  const auto convert = [&](int step, const std::string& to) {
    EXPECT_TRUE(done(run_plain({"convert", "--source", trained(step), "--to", "megatron", "--trainer-alloc",
                                allocation, "--weight-version", "7", "--output", to})));
  };
  convert(0, dir_ / "one");
  convert(1, dir_ / "other");
  std::filesystem::copy(dir_ / "other/trainer-1.safetensors", dir_ / "one",
                        std::filesystem::copy_options::overwrite_existing);
  EXPECT_TRUE(refused(run_plain({"plan", "--source", dir_ / "one", "--trainer-alloc", allocation}), 65,
                      {"trainer-1", "together"}));
}

TEST_F(Mixtures, AFolderWithShardsAndAWholeCheckpoint) {
  const std::string both = dir_ / "both";
  const Words allocation{"--trainer-alloc", "megatron:t2"};
  const Words to_shards =
      Words{"convert", "--source", trained(0), "--to", "megatron", "--output", both} + allocation;
  EXPECT_TRUE(done(run_plain(to_shards)));
  const auto before = folder_contents(both);
  for (const std::string& output : {both, both + "/model.h5"}) {
    EXPECT_TRUE(refused(run_plain({"convert", "--source", trained(1), "--output", output}), 64,
                        {"--output", "trainers' shards"}));
    EXPECT_TRUE(refused(run_plain({"synth", "--model", trained(1), "--output", output}), 64,
                        {"--output", "trainers' shards"}));
  }
  EXPECT_EQ(folder_contents(both), before);
  std::filesystem::copy(trained(1) + "/model.safetensors", both);
  EXPECT_TRUE(refused(run_plain(Words{"plan", "--source", both} + allocation), 65,
                      {both, "model.safetensors", "remove"}));
  EXPECT_TRUE(refused(run_plain(to_shards), 64, {"--output", "model.safetensors"}));
}

TEST_F(Mixtures, OptionsOfConvertThatMeanNothing) {
  const Words base{"convert", "--source", trained(0), "--output", dir_ / "out"};
  EXPECT_TRUE(refused(run_plain(base + Words{"--trainer-alloc", "megatron:t2"}), 64, {"--to"}));
  EXPECT_TRUE(refused(run_plain(base + Words{"--format", "hdf5"}), 64, {"--format"}));
  EXPECT_TRUE(refused(
      run_plain(base + Words{"--to", "megatron", "--trainer-alloc", "megatron:t2", "--max-file-size", "1MB"}),
      64, {"--max-file-size"}));
  EXPECT_TRUE(refused(run_plain(base + Words{"--to", "megatron"}), 64, {"--trainer-alloc"}));
  EXPECT_FALSE(std::filesystem::exists(dir_ / "out"));
  const std::string shards = dir_ / "shards";
  EXPECT_TRUE(done(run_plain({"convert", "--source", trained(0), "--to", "megatron", "--trainer-alloc",
                              "megatron:t2", "--output", shards})));
  EXPECT_TRUE(refused(run_plain({"convert", "--source", shards, "--to", "megatron", "--trainer-alloc",
                                 "megatron:t2", "--output", dir_ / "out"}),
                      64, {shards, "--to hf"}));
}

TEST_F(Mixtures, LayoutsThatMeanTheSameAreTheSame) {
  const std::string shards = dir_ / "shards";
  EXPECT_TRUE(done(run_plain({"convert", "--source", trained(0), "--to", "megatron", "--trainer-alloc",
                              "megatron:p3", "--stage-layers", "1,1,1", "--output", shards})));
  EXPECT_TRUE(done(run_plain({"plan", "--source", shards, "--trainer-alloc", "megatron:p3"})));
  EXPECT_TRUE(done(run_plain(
      {"plan", "--source", shards, "--trainer-alloc", "megatron:p3", "--trainer-order", "tp-pp-dp"})));
}

TEST_F(Mixtures, AnOrderThatWouldPutARankIntoTwoStages) {
  const Words words{"--trainer-alloc", "megatron:(attn:d2p3t2|ffn:d1p3e4)", "--trainer-order", "tp-pp-dp"};
  const Words in_the_line{"--trainer-order", "two stages"};
  EXPECT_TRUE(refused(run_plain(Words{"plan", "--model", trained(0)} + words), 64, in_the_line));
  EXPECT_TRUE(refused(
      run_plain(Words{"convert", "--source", trained(0), "--to", "megatron", "--output", dir_ / "out"} +
                words),
      64, in_the_line));
  EXPECT_FALSE(std::filesystem::exists(dir_ / "out"));
}

TEST_F(Mixtures, TheCommandLineOverridesAnAllocationOfTheEnvironment) {
  const Variables environment{{"WEIGHTCAST_ALLOC", "sglang:t4+megatron:t2"}};
  const Outcome outcome = run_plain({"plan", "--model", trained(0), "--inference", "tp=2"}, environment);
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {"tp 2"}));
  EXPECT_TRUE(refused(run_plain({"plan", "--model", trained(0)}, {{"WEIGHTCAST_ALLOC", "sglang:x2"}}), 64,
                      {"WEIGHTCAST_ALLOC", "x2"}));
}

TEST_F(Mixtures, AStageWhoseTiedHeadIsNotTheEmbedding) {
  const SmallModel model = small_model("DenseTied");
  make_checkpoint(model, dir_ / "model");
  MegatronLayout layout;
  layout.p = 3;
  layout.t = 2;
  layout.stale_copy = true;
  const std::string shards = dir_ / "trainers";
  write_trainer_shards(shards_of(dir_ / "model", layout), read_json(dir_ / "model/config.json"), shards,
                       ".safetensors");
  const Words words{"--source", shards, "--trainer-alloc", allocation_of(layout)};
  const Words in_the_line{"trainer-", "embedding", "output layer", "--tied-head embedding"};
  EXPECT_TRUE(refused(run_plain(Words{"plan"} + words), 65, in_the_line));
  const Words sync = Words{"sync", "--inference", "tp=1", "--sink", "hdf5:" + sink_} + words;
  EXPECT_TRUE(refused(run_job(7, sync), 65, in_the_line));
  EXPECT_TRUE(done(run_job(7, sync + Words{"--tied-head", "embedding"})));
  EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", dir_ / "model"})));
}

TEST_F(Mixtures, FormsThatAreNotReadSayWhy) {
  MegatronLayout layout;
  const std::string shards = dir_ / "shards";
  for (const auto& [name, word] : std::vector<std::pair<std::string, std::string>>{
           {"decoder.layers.0.mlp.experts.weight1", "grouped"},
           {"decoder.layers.0.mlp.experts.linear_fc1.weight", "one by one"},
           {"decoder.layers.0.mlp.router.expert_bias", "config.json"}}) {
    SCOPED_TRACE(name);
    std::vector<SafetensorsFile> files = shards_of(trained(0), layout);
    auto& tensors = files.front().tensors;
    auto moved = tensors.extract("decoder.layers.0.mlp.experts.linear_fc1.weight0");
    moved.key() = name;
    tensors.insert(std::move(moved));
    write_trainer_shards(files, read_json(trained(0) + "/config.json"), shards, ".safetensors");
    EXPECT_TRUE(refused(run_plain({"plan", "--source", shards, "--trainer-alloc", "megatron:t1"}), 65,
                        {"trainer-0", name, word}));
  }
}

}  // namespace
}  // namespace weightcast::test_support
