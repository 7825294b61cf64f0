// Small models of single families through the program: what an engine's shards hold of them, and trainers'.

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "cli/cli.hpp"

namespace weightcast::test_support {
namespace {

class Families : public CliTest {
 protected:
  /// A checkpoint of deterministic values of a model of tests/data/vllm.
  void make_source(const std::string& model) {
    config_ = std::string(kData) + "/vllm/" + model + "/config.json";
    EXPECT_TRUE(done(run_plain({"synth", "--model", config_, "--output", source_})));
  }
  SafetensorsFile weights() const { return SafetensorsFile::read(source_ + "/model.safetensors"); }

  Outcome sync(const std::string& sink, const Words& from, int trainers) const {
    return run_job(trainers + 2, Words{"sync", "--engine", "vllm", "--sink", "safetensors:" + sink} + from);
  }
  Outcome sync(const std::string& sink) const {
    return sync(sink, {"--source", source_, "--inference", "tp=2"}, 1);
  }

  /// To Megatron's names and back, and from there to the engine.
  void expect_trainers(const std::string& allocation, int trainers) const {
    SCOPED_TRACE(allocation);
    const TempDir dir;
    const std::string shards = dir / "trainers";
    const Words layout{"--trainer-alloc", allocation};
    EXPECT_TRUE(done(
        run_plain(Words{"convert", "--source", source_, "--to", "megatron", "--output", shards} + layout)));
    const Words from = Words{"--source", shards} + layout;
    EXPECT_TRUE(done(run_plain(Words{"convert", "--to", "hf", "--output", dir / "back"} + from)));
    EXPECT_TRUE(SafetensorsFile::read(dir / "back/model.safetensors").tensors == weights().tensors);
    EXPECT_TRUE(done(sync(dir / "from-trainers", from + Words{"--inference", "tp=2"}, trainers)));
    EXPECT_TRUE(done(sync(dir / "from-file")));
    EXPECT_TRUE(shard_contents(dir / "from-trainers") == shard_contents(dir / "from-file"));
  }

  std::string config_;
  std::string source_ = dir_ / "source";
};

TEST_F(Families, OneChangedByteOfWhatIsComputedIsFound) {
  make_source("nemotron-h");
  EXPECT_TRUE(done(sync(sink_)));
  const Words verify{"verify", sink_, "--source", source_};
  EXPECT_TRUE(done(run_plain(verify)));
  const std::string shard = sink_ + "/rank-1.safetensors";
  const std::string parameter = "model.layers.0.mixer.A";
  const SafetensorsFile held = SafetensorsFile::read(shard);
  const std::string values = held.tensors.at(parameter).data;
  ASSERT_EQ(values.size(), 12u);
  // What it is computed from is nowhere in the shard.
  EXPECT_FALSE(held.tensors.contains(parameter + "_log"));
  const std::size_t at = get_file(shard).find(values);
  for (std::size_t byte = 0; byte < values.size(); ++byte) {
    flip_bit(shard, at + byte);
    EXPECT_TRUE(refused(run_plain(verify), 66,
                        {shard, parameter + " differs from tensor backbone.layers.0.mixer.A_log"}));
    flip_bit(shard, at + byte);
  }
  EXPECT_TRUE(done(run_plain(verify)));
}

TEST_F(Families, WhatIsComputedIsTheSameOfEitherType) {
  make_source("nemotron-h");
  SafetensorsFile file = weights();
  SafetensorsFile::Tensor& logs = file.tensors.at("backbone.layers.0.mixer.A_log");
  const SafetensorsFile::Tensor narrow{"BF16", logs.shape,
                                       std::string("\x80\x3f\x00\x40\xbf\xc0\x00\x00\x10\xc1\x20\x3e", 12)};
  for (const SafetensorsFile::Tensor& tensor : {narrow, widened(narrow)}) {
    logs = tensor;
    file.write(source_ + "/model.safetensors");
    EXPECT_TRUE(done(sync(dir_ / tensor.dtype)));
  }
  EXPECT_TRUE(shard_contents(dir_ / "BF16") == shard_contents(dir_ / "F32"));
}

TEST_F(Families, KeysThatAreValuesAndSharedOnes) {
  for (const char* model : {"gemma4-moe", "gemma4-ple"}) {
    SCOPED_TRACE(model);
    make_source(model);
    for (const char* engine : {"vllm", "sglang"}) {
      const std::string sink = dir_ / engine;
      EXPECT_TRUE(done(run_job(3, {"sync", "--source", source_, "--inference", "tp=2", "--engine", engine,
                                   "--sink", "safetensors:" + sink, "--weight-version", "1"})));
      const Words verify{"verify", sink, "--source", source_};
      EXPECT_TRUE(done(run_plain(verify)));
      // A byte of the values that k_proj fills, too.
      const std::string shard = sink + "/rank-0.safetensors";
      const std::string qkv =
          SafetensorsFile::read(shard).tensors.at("model.layers.1.self_attn.qkv_proj.weight").data;
      const std::size_t at = get_file(shard).find(qkv) + qkv.size() - 1;
      flip_bit(shard, at);
      EXPECT_TRUE(refused(run_plain(verify), 66, {shard, "model.layers.1.self_attn.qkv_proj.weight"}));
    }
    std::filesystem::remove_all(source_);
    std::filesystem::remove_all(dir_ / "vllm");
    std::filesystem::remove_all(dir_ / "sglang");
  }
}

TEST_F(Families, TrainersOfMambaLayers) {
  make_source("nemotron-h");
  expect_trainers("megatron:(attn:d1p2t2c1|ffn:d1p2t1e2)", 4);
  expect_trainers("megatron:(attn:d2p1t2c1|ffn:d1p1t2e2)", 4);
  expect_trainers("megatron:(attn:d3p1t1c1|ffn:d1p1t1e3)", 3);
}

TEST_F(Families, PlansOfTrainersWithoutANumberOfLayers) {
  // transformers writes none for this family.
  make_source("nemotron-h");
  const Outcome outcome =
      run_plain({"plan", "--model", config_, "--trainer-alloc", "megatron:d1p2t2", "--inference", "tp=2"});
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {"# model", "37 tensors"}));
}

}  // namespace
}  // namespace weightcast::test_support
