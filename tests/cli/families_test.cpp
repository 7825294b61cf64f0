// Small models of single families through the program: what an engine's shards hold of them.

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "cli/families.hpp"

namespace weightcast::test_support {
namespace {

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

TEST_F(Families, PlansOfTrainersWithoutANumberOfLayers) {
  // transformers writes none for this family.
  make_source("nemotron-h");
  const Outcome outcome =
      run_plain({"plan", "--model", config_, "--trainer-alloc", "megatron:d1p2t2", "--inference", "tp=2"});
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {"# model", "37 tensors"}));
}

TEST_F(Families, WrappersAreWrittenAsTheirLibrariesCallThem) {
  for (const Wrapped& wrapped : kWrapped) {
    const auto& [model, architecture, model_type, text_type, prefix, tower] = wrapped;
    SCOPED_TRACE(architecture);
    nlohmann::json config = config_of(wrapped);
    put_file(dir_ / "config.json", config.dump());
    EXPECT_TRUE(done(run_plain({"synth", "--model", dir_ / "config.json", "--output", source_})));
    SafetensorsFile file = weights();
    for (const auto& [name, tensor] : file.tensors) {
      EXPECT_TRUE(name.starts_with(prefix) || name == "lm_head.weight") << name;
    }
    // What sees goes with it as it is, whatever it is.
    const std::string see = std::string(tower) + "blocks.0.norm1.weight";
    file.tensors[see] = {"F32", {3}, std::string("0123456789ab")};
    file.tensors[std::string(tower) + "pos_embed.weight"] = {"F16", {2, 2, 3}, std::string(24, 'v')};
    file.write(source_ + "/model.safetensors");
    config["vision_config"] = {{"depth", 1}};
    put_file(source_ + "/config.json", config.dump());
    const Words convert{"convert", "--to", "hf", "--source"};
    const std::string back = dir_ / "back";
    EXPECT_TRUE(done(run_plain(convert + Words{source_, "--output", back})));
    EXPECT_TRUE(SafetensorsFile::read(back + "/model.safetensors").tensors == file.tensors);
    EXPECT_EQ(read_json(back + "/config.json"), config);

    // A text-only export has no prefix, and nothing that sees.
    SafetensorsFile plain;
    for (const auto& [name, tensor] : weights().tensors) {
      if (name.starts_with(tower)) continue;
      const bool body = name.starts_with(prefix);
      const std::string inner = body ? name.substr(std::string_view(prefix).size()) : name;
      plain.tensors[body && !inner.starts_with("model.") && !inner.starts_with("lm_head.") ? "model." + inner
                                                                                           : inner] = tensor;
    }
    plain.write(source_ + "/model.safetensors");
    const Outcome outcome = run_plain(convert + Words{source_, "--output", dir_ / "text"});
    EXPECT_TRUE(done(outcome));
    EXPECT_TRUE(has(outcome.err, {std::string("has no ") + tower + "*"}));
    auto expected = file.tensors;
    std::erase_if(expected, [&](const auto& entry) { return entry.first.starts_with(tower); });
    EXPECT_TRUE(SafetensorsFile::read(dir_ / "text/model.safetensors").tensors == expected);
    for (const std::string& folder : {source_, back, std::string(dir_ / "text")})
      std::filesystem::remove_all(folder);
  }
}

TEST_F(Families, TrainersHaveTheTextModelOfAWrapper) {
  make_source("qwen3.5-vl");
  auto config = read_json(config_);
  config["vision_config"] = {{"depth", 1}};
  put_file(source_ + "/config.json", config.dump());
  const Words layout{"--trainer-alloc", "megatron:t2"};
  const std::string shards = dir_ / "trainers";
  const Outcome outcome =
      run_plain(Words{"convert", "--source", source_, "--to", "megatron", "--output", shards} + layout);
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.err, {"model.visual.* is left out"}));
  EXPECT_TRUE(done(
      run_plain(Words{"convert", "--source", shards, "--to", "hf", "--output", dir_ / "back"} + layout)));
  EXPECT_TRUE(SafetensorsFile::read(dir_ / "back/model.safetensors").tensors == weights().tensors);
}

}  // namespace
}  // namespace weightcast::test_support
