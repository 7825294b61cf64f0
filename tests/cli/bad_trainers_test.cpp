// Allocations that cannot be, and trainers' shards that are not what their allocation says.

#include <functional>

#include "cli/trainers.hpp"

namespace weightcast::test_support {
namespace {

using Refusal = std::pair<std::string, Words>;

Outcome plan(const std::string& allocation, const Words& more = {}) {
  return run_plain(Words{"plan", "--model", trained(0), "--alloc", allocation} + more);
}

void expect_all_refused(const std::vector<Refusal>& allocations) {
  for (const auto& [allocation, in_the_line] : allocations) {
    SCOPED_TRACE(allocation);
    EXPECT_TRUE(refused(plan(allocation), 64, in_the_line));
  }
}

TEST(BadAllocations, Letters) {
  expect_all_refused({
      {"sglang:t2x2+megatron:t2", {"x2"}},
      {"sglang:t2+megatron:t2x2", {"x2"}},
      {"sglang:t2+megatron:(attn:t2|ffn:t1x2)", {"x2"}},
      {"sglang:c2t2+megatron:t2", {"c2"}},
      {"sglang:t2+megatron:(attn:t2e2|ffn:t4)", {"e2"}},
      {"sglang:t2+megatron:(attn:t2c2|ffn:t2c2)", {"c2"}},
      {"sglang:t2t4+megatron:t2", {"t4"}},
      {"sglang:t2+megatron:d2t2d2", {"d2"}},
      {"sglang:t2+megatron:(attn:t2|ffn:e2e1)", {"e1"}},
  });
}

TEST(BadAllocations, Sizes) {
  expect_all_refused({
      {"sglang:t0+megatron:t2", {"t0"}},
      {"sglang:t2+megatron:d0t2", {"d0"}},
      {"sglang:t2+megatron:(attn:t2|ffn:e0)", {"e0"}},
      {"sglang:t+megatron:t2", {"sglang:t"}},
      {"sglang:2+megatron:t2", {"2"}},
      {"sglang:t-2+megatron:t2", {"t-2"}},
      {"sglang:t2.5+megatron:t2", {"sglang:t2.5"}},
      {"sglang:t99999999999999999999+megatron:t2", {"t99999999999999999999"}},
      // Products that 64 bits do not hold.
      {"sglang:d4294967296p1t4294967296+megatron:t2", {"4294967296"}},
      {"sglang:t2+megatron:d4294967296c4294967296", {"4294967296"}},
      {"sglang:t2+megatron:d1048576p1048576t1048576c1048576", {"1048576"}},
  });
}

TEST(BadAllocations, Form) {
  expect_all_refused({
      {"", {"--alloc", "sglang:", "megatron:"}},
      {"sglang:t2", {"sglang:t2", "trainers", "+"}},
      {"megatron:t2", {"megatron:t2", "inference", "+"}},
      {"sglang:t2+", {"sglang:t2+", "megatron:"}},
      {"sglang:+megatron:t2", {"sglang:+megatron:t2"}},
      {"sglang:t2+megatron:t2+megatron:t2", {"megatron:t2+megatron:t2"}},
      {"pigeon:t2+megatron:t2", {"pigeon"}},
      {"sglang:t2+pigeon:t2", {"pigeon"}},
      {"sglang:t2+megatron:(attn:t2|ffn:t2", {"(attn:t2|ffn:t2"}},
      {"sglang:t2+megatron:attn:t2|ffn:t2)", {"attn:t2|ffn:t2)"}},
      {"sglang:t2+megatron:(attn:t2|mlp:t2)", {"mlp"}},
      {"sglang:t2+megatron:(attn:t2|attn:t2)", {"attn:t2|attn:t2"}},
      {"sglang:t2 + megatron:t2", {"sglang:t2 + megatron:t2"}},
  });
  EXPECT_TRUE(refused(run_plain({"plan", "--model", trained(0), "--trainer-alloc", "sglang:t2"}), 64,
                      {"--trainer-alloc", "sglang:t2", "megatron:"}));
  EXPECT_TRUE(refused(run_plain({"plan", "--model", trained(0), "--inference-alloc", "megatron:t2"}), 64,
                      {"--inference-alloc", "megatron:t2", "sglang:"}));
}

TEST(BadAllocations, PartsOfDifferentSize) {
  expect_all_refused({
      {"sglang:t2+megatron:(attn:d1p1t2c2|ffn:d1p1t2e1)", {"attn", "4", "ffn", "2"}},
      {"sglang:t2+megatron:(attn:p3t2|ffn:p1t2e3)", {"attn", "3", "ffn", "1"}},
      // No whole number of copies of the experts.
      {"sglang:t2+megatron:(attn:t2|ffn:e4)", {"ffn", "4", "2"}},
      {"sglang:t2+megatron:t2e4", {"e4", "2"}},
  });
}

TEST(BadAllocations, ModelThatIsNotDivided) {
  // 8 heads and 2 kv heads of 16, 8 experts of 64, 3 layers.
  expect_all_refused({
      {"sglang:t2+megatron:t5", {"5", "divide"}},
      {"sglang:t2+megatron:t3", {"3", "divide"}},
      {"sglang:t2+megatron:d3e3", {"3", "experts", "8", "divide"}},
      {"sglang:t2+megatron:(attn:d3|ffn:t3)", {"3", "64", "divide"}},
      {"sglang:t2+megatron:p2", {"2", "layers", "3", "--stage-layers"}},
      {"sglang:t5+megatron:t2", {"5", "heads", "8"}},
      {"sglang:t4e3+megatron:t2", {"3"}},
      {"sglang:p2+megatron:t2", {"2", "layers", "3"}},
  });
}

TEST(BadAllocations, StageLayers) {
  const std::string allocation = "sglang:t2+megatron:p2t2";
  EXPECT_TRUE(done(plan(allocation, {"--stage-layers", "2,1"})));
  EXPECT_TRUE(done(plan(allocation, {"--stage-layers", "1,1,1,0"})));
  for (const std::string list : {"1,1", "2,2", "4,-1", "3", "1,1,1", "2,one", "2,1,", ",3", "", "2;1"}) {
    SCOPED_TRACE(list);
    EXPECT_TRUE(refused(plan(allocation, {"--stage-layers", list}), 64, {"--stage-layers", list}));
  }
  EXPECT_TRUE(refused(plan(allocation, {"--stage-layers", "1,1"}), 64, {"--stage-layers 1,1", "2", "3"}));
  EXPECT_TRUE(refused(plan(allocation, {"--stage-layers", "1,1,1"}), 64, {"--stage-layers 1,1,1", "2"}));
  // Without trainers that it could be about.
  EXPECT_TRUE(refused(run_plain({"plan", "--model", trained(0), "--stage-layers", "3"}), 64,
                      {"--stage-layers", "alloc"}));
}

TEST(BadAllocations, Choices) {
  const std::string allocation = "sglang:t2+megatron:t2";
  EXPECT_TRUE(refused(plan(allocation, {"--trainer-order", "dp-tp-pp"}), 64,
                      {"--trainer-order dp-tp-pp", "tp-dp-pp", "tp-pp-dp"}));
  EXPECT_TRUE(refused(plan(allocation, {"--trainer-names", "french"}), 64,
                      {"--trainer-names french", "local", "global"}));
}

TEST(BadAllocations, BesideOtherWordsForTheSame) {
  const std::string allocation = "sglang:t2+megatron:t2";
  EXPECT_TRUE(refused(plan(allocation, {"--inference", "tp=2"}), 64, {"--alloc", "--inference"}));
  EXPECT_TRUE(refused(plan(allocation, {"--trainers", "2"}), 64, {"--alloc", "--trainers"}));
  EXPECT_TRUE(
      refused(plan(allocation, {"--trainer-alloc", "megatron:t2"}), 64, {"--alloc", "--trainer-alloc"}));
  EXPECT_TRUE(
      refused(plan(allocation, {"--inference-alloc", "sglang:t2"}), 64, {"--alloc", "--inference-alloc"}));
  EXPECT_TRUE(
      refused(run_plain({"plan", "--model", trained(0), "--trainer-alloc", "megatron:t2", "--trainers", "2"}),
              64, {"--trainer-alloc", "--trainers"}));
  EXPECT_TRUE(refused(
      run_plain({"plan", "--model", trained(0), "--inference-alloc", "sglang:t2", "--inference", "tp=2"}), 64,
      {"--inference-alloc", "--inference"}));
}

/// Four trainers, each with the files of the real model that its place asks for.
class BadTrainers : public CliTest {
 protected:
  BadTrainers() {
    layout_.t = 2;
    layout_.c = 2;
    layout_.e = 2;
    write(layout_);
    put_old_shards();
  }

  void write(const MegatronLayout& layout) const {
    write_trainer_shards(shards_of(trained(0), layout), read_json(trained(0) + "/config.json"), trainers_,
                         ".safetensors");
  }

  std::string file(int rank) const { return trainers_ + "/trainer-" + std::to_string(rank) + ".safetensors"; }

  void change(int rank, const std::function<void(SafetensorsFile&)>& spoil) const {
    SafetensorsFile shard = SafetensorsFile::read(file(rank));
    spoil(shard);
    shard.write(file(rank));
  }

  /// Runs a job in front of shards that must survive it.
  void expect_refused(int code, const Words& in_the_line,
                      const Words& allocation = {"--alloc", "sglang:t2e2+megatron:t2c2e2"},
                      int ranks = 6) const {
    const auto before = folder_contents(sink_);
    EXPECT_TRUE(
        refused(run_job(ranks, Words{"sync", "--source", trainers_, "--sink", "hdf5:" + sink_} + allocation),
                code, in_the_line));
    EXPECT_EQ(folder_contents(sink_), before);
  }

  MegatronLayout layout_;
  std::string trainers_ = dir_ / "trainers";
};

TEST_F(BadTrainers, NumberOfRanks) {
  const Words allocation{"--alloc", "sglang:t2+megatron:t2c2e2"};
  expect_refused(64, {"6 ranks", "started 5", "alloc"}, allocation, 5);
  expect_refused(64, {"6 ranks", "started 7", "alloc"}, allocation, 7);
  const Words separately{"--inference-alloc", "sglang:t2", "--trainer-alloc", "megatron:t2c2e2"};
  expect_refused(64, {"6 ranks", "started 4", "alloc"}, separately, 4);
}

TEST_F(BadTrainers, ColocationOfUnequalSides) {
  expect_refused(64, {"--colocate", "4", "2"}, {"--alloc", "sglang:t2+megatron:t2c2e2", "--colocate"}, 4);
  expect_refused(64, {"--colocate", "4", "8"}, {"--alloc", "sglang:t8+megatron:t2c2e2", "--colocate"}, 8);
  expect_refused(64, {"4 ranks", "started 3", "alloc"},
                 {"--alloc", "sglang:t4+megatron:t2c2e2", "--colocate"}, 3);
}

TEST_F(BadTrainers, NoAllocation) {
  expect_refused(64, {trainers_, "--trainer-alloc"}, {"--inference", "tp=2"}, 3);
  EXPECT_TRUE(refused(run_plain({"plan", "--source", trainers_}), 64, {trainers_, "--trainer-alloc"}));
  EXPECT_TRUE(refused(run_plain({"convert", "--source", trainers_, "--to", "hf", "--output", dir_ / "x"}), 64,
                      {"--trainer-alloc"}));
  EXPECT_TRUE(
      refused(run_plain({"convert", "--source", trained(0), "--to", "megatron", "--output", dir_ / "x"}), 64,
              {"--trainer-alloc"}));
  EXPECT_FALSE(std::filesystem::exists(dir_ / "x"));
  EXPECT_TRUE(done(run_job(3, sync_words(trained(0)))));
  EXPECT_TRUE(
      refused(run_plain({"verify", sink_, "--source", trainers_}), 64, {trainers_, "--trainer-alloc"}));
}

TEST_F(BadTrainers, WordsOfConvert) {
  const Words convert{"convert", "--source", trained(0), "--output", dir_ / "x"};
  const Words allocation{"--trainer-alloc", "megatron:t2"};
  EXPECT_TRUE(
      refused(run_plain(convert + allocation + Words{"--to", "tape"}), 64, {"--to tape", "hf", "megatron"}));
  EXPECT_TRUE(refused(run_plain(convert + allocation + Words{"--to", "megatron", "--format", "tape"}), 64,
                      {"--format tape", "safetensors", "hdf5"}));
  EXPECT_TRUE(refused(run_plain(convert + Words{"--to", "megatron", "--trainer-alloc", "megatron:p2"}), 64,
                      {"2", "layers", "3", "--stage-layers"}));
  EXPECT_FALSE(std::filesystem::exists(dir_ / "x"));
}

TEST_F(BadTrainers, MissingFile) {
  std::filesystem::remove(file(3));
  expect_refused(74, {"trainer-3", "is not there"});
  EXPECT_TRUE(refused(run_plain({"convert", "--source", trainers_, "--to", "hf", "--trainer-alloc",
                                 "megatron:t2c2e2", "--output", dir_ / "x"}),
                      74, {"trainer-3", "is not there"}));
  EXPECT_FALSE(std::filesystem::exists(dir_ / "x"));
}

TEST_F(BadTrainers, MoreFilesThanTrainers) {
  std::filesystem::copy(file(3), file(4));
  expect_refused(65, {trainers_, "trainer 4", "4 trainers"});
}

TEST_F(BadTrainers, FileInBothContainers) {
  write_trainer_shards(shards_of(trained(181), layout_), read_json(trained(181) + "/config.json"),
                       dir_ / "other", ".h5");
  std::filesystem::copy(dir_ / "other/trainer-1.h5", trainers_ + "/trainer-1.h5");
  expect_refused(65, {"trainer-1.safetensors", "trainer-1.h5"});
}

TEST_F(BadTrainers, FileOfAnotherRank) {
  std::filesystem::remove_all(trainers_);
  for (const std::string extension : {".safetensors", ".h5"}) {
    std::filesystem::remove_all(trainers_);
    EXPECT_TRUE(done(run_plain({"convert", "--source", trained(0), "--to", "megatron", "--trainer-alloc",
                                "megatron:t2c2e2", "--format", extension == ".h5" ? "hdf5" : "safetensors",
                                "--output", trainers_})));
    std::filesystem::copy(trainers_ + "/trainer-1" + extension, trainers_ + "/trainer-0" + extension,
                          std::filesystem::copy_options::overwrite_existing);
    expect_refused(65, {"trainer-0" + extension, "1"});
  }
}

TEST_F(BadTrainers, FileOfAnotherStage) {
  // Nothing in the file says whose it is, but the tensors are not those of the place.
  MegatronLayout stages;
  stages.p = 3;
  write(stages);
  std::filesystem::copy(file(1), file(0), std::filesystem::copy_options::overwrite_existing);
  std::filesystem::remove(file(3));
  expect_refused(65, {"trainer-0.safetensors", "embedding.word_embeddings.weight"},
                 {"--alloc", "sglang:t2+megatron:p3"}, 5);
}

TEST_F(BadTrainers, FilesOfDifferentVersions) {
  std::filesystem::remove_all(trainers_);
  for (const std::string version : {"2", "1"}) {
    EXPECT_TRUE(done(run_plain({"convert", "--source", trained(0), "--to", "megatron", "--trainer-alloc",
                                "megatron:t2c2e2", "--weight-version", version, "--output",
                                version == "1" ? trainers_ : dir_ / "newer"})));
  }
  std::filesystem::copy(dir_ / "newer/trainer-1.safetensors", file(1),
                        std::filesystem::copy_options::overwrite_existing);
  expect_refused(65, {"trainer-1.safetensors", "version", "1", "2"});
}

TEST_F(BadTrainers, TruncatedFile) {
  const std::string bytes = get_file(file(2));
  put_file(file(2), bytes.substr(0, bytes.size() - 2));
  expect_refused(65, {"trainer-2.safetensors", "truncated"});
}

TEST_F(BadTrainers, Shape) {
  const std::string name = "decoder.layers.1.self_attention.linear_proj.weight";
  change(2, [&](SafetensorsFile& shard) {
    EXPECT_EQ(shard.tensors.at(name).shape, (std::vector<std::int64_t>{128, 64}));
    shard.tensors.at(name).shape = {64, 128};
  });
  expect_refused(65, {"trainer-2.safetensors", name, "[64, 128]", "[128, 64]"});
}

TEST_F(BadTrainers, ShapeOfAnotherDivision) {
  // Cut for t=4: each file is whole, and of the wrong size.
  layout_.t = 4;
  layout_.c = 1;
  write(layout_);
  expect_refused(65, {"embedding.word_embeddings.weight", "256", "259"});
  // With that much padding two of the four would do.
  layout_.vocabulary_rows = 520;
  write(layout_);
  expect_refused(65, {"trainer-", ".safetensors", "decoder.layers.0.", "["});
}

TEST_F(BadTrainers, Dtype) {
  const std::string name = "decoder.layers.0.mlp.router.weight";
  change(1, [&](SafetensorsFile& shard) { shard.tensors.at(name).dtype = "F16"; });
  expect_refused(65, {"trainer-1.safetensors", name, "float16", "bfloat16"});
}

TEST_F(BadTrainers, MissingTensor) {
  const std::string name = "decoder.layers.2.mlp.experts.linear_fc2.weight3";
  change(1, [&](SafetensorsFile& shard) { shard.tensors.erase(name); });
  expect_refused(65, {"trainer-1.safetensors", name, "[128, 64]", "missing"});
}

TEST_F(BadTrainers, ExtraTensor) {
  for (const std::string name :
       {"decoder.layers.3.mlp.router.weight", "decoder.layers.2.mlp.experts.linear_fc2.weight4",
        "decoder.layers.1.self_attention.linear_qkv.extra"}) {
    write(layout_);
    change(1, [&](SafetensorsFile& shard) {
      shard.tensors[name] = shard.tensors.at("decoder.layers.2.mlp.router.weight");
    });
    expect_refused(65, {"trainer-1.safetensors", name});
  }
}

TEST_F(BadTrainers, TheSameTensorUnderTwoNames) {
  change(1, [&](SafetensorsFile& shard) {
    shard.tensors["decoder.layers.1.input_layernorm.weight"] =
        shard.tensors.at("decoder.layers.1.self_attention.linear_qkv.layer_norm_weight");
  });
  expect_refused(65, {"trainer-1.safetensors", "decoder.layers.1.", "norm"});
}

TEST_F(BadTrainers, VocabularyThatIsTooShort) {
  layout_.vocabulary_rows = 260;
  write(layout_);
  for (const int rank : {0, 1, 2, 3}) {
    change(rank, [&](SafetensorsFile& shard) {
      auto& head = shard.tensors.at("output_layer.weight");
      head.shape = {120, 128};
      head.data.resize(std::size_t{120} * 128 * 2);
    });
  }
  // 2 · 120 rows do not hold 259.
  expect_refused(65, {"trainer-", "output_layer.weight", "120"});
}

TEST_F(BadTrainers, VocabularyThatIsPaddedInTwoWays) {
  change(1, [&](SafetensorsFile& shard) {
    auto& embedding = shard.tensors.at("embedding.word_embeddings.weight");
    embedding.shape = {300, 128};
    embedding.data.resize(std::size_t{300} * 128 * 2);
  });
  expect_refused(65, {"trainer-", "embedding.word_embeddings.weight", "300", "256"});
}

TEST_F(BadTrainers, VocabularyThatIsPaddedOtherwiseLater) {
  layout_.vocabulary_rows = 260;
  write_trainer_shards(shards_of(trained(181), layout_), read_json(trained(181) + "/config.json"),
                       dir_ / "other", ".safetensors");
  expect_refused(65, {dir_ / "other", "260", "512"},
                 {"--source", dir_ / "other", "--alloc", "sglang:t2e2+megatron:t2c2e2"});
}

TEST_F(BadTrainers, NamesOfTheOtherKind) {
  // Of two stages: the second one's layers are numbered on from the first's, or from 0.
  MegatronLayout stages;
  stages.p = 3;
  stages.names.global_numbers = true;
  write(stages);
  std::filesystem::remove(file(3));
  expect_refused(65, {"trainer-1.safetensors", "decoder.layers.0."}, {"--alloc", "sglang:t2+megatron:p3"}, 5);
}

}  // namespace
}  // namespace weightcast::test_support
