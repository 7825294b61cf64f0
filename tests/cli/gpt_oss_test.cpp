// gpt-oss as OpenAI publishes it: experts' codes in blocks of 16 bytes, four-dimensional, of bytes that no
// type says the meaning of.

#include "cli/cli.hpp"

namespace weightcast::test_support {
namespace {

constexpr std::int64_t kHidden = 64;
constexpr std::int64_t kInner = 192;
constexpr std::int64_t kExperts = 4;

/// Bfloat16 as float32.
std::string widened(const std::string& data) {
  std::string wide;
  for (std::size_t at = 0; at < data.size(); at += 2) wide += std::string(2, '\0') + data.substr(at, 2);
  return wide;
}

class GptOss : public CliTest {
 protected:
  GptOss() {
    nlohmann::json config = read_json(std::string(kData) + "/vllm/gpt-oss/config.json");
    config["hidden_size"] = kHidden;
    config["intermediate_size"] = kInner;
    config["num_local_experts"] = kExperts;
    config["quantization_config"] = {
        {"quant_method", "mxfp4"},
        {"modules_to_not_convert",
         {"model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"}}};
    put_file(model_ + "/config.json", config.dump());
    put_file(published_ + "/config.json", config.dump());
    EXPECT_TRUE(done(run_plain({"synth", "--model", model_, "--output", dir_ / "synthetic"})));
    SafetensorsFile file = SafetensorsFile::read(dir_ / "synthetic/model.safetensors");
    for (auto& [name, tensor] : file.tensors) {
      const bool up = name.find("gate_up_proj") != std::string::npos;
      const std::int64_t rows = up ? 2 * kInner : kHidden;
      if (name.ends_with("gate_up_proj_bias") || name.ends_with("down_proj_bias")) {
        std::string bits;  // the upper halves of float32
        for (std::size_t at = 0; at < tensor.data.size(); at += 4) bits += tensor.data.substr(at + 2, 2);
        tensor = {"BF16", {kExperts, rows}, bits};
      }
    }
    write(file);
  }

  void write(const SafetensorsFile& file) const { file.write(published_ + "/model.safetensors"); }
  SafetensorsFile read() const { return SafetensorsFile::read(published_ + "/model.safetensors"); }

  /// Shards of a source, which are what `verify` says they are.
  std::map<std::string, std::string> shards(int ranks, const std::string& source, const Words& options) {
    EXPECT_TRUE(done(run_job(
        ranks,
        Words{"sync", "--source", source, "--sink", "hdf5:" + sink_, "--bucket-size", "64KiB"} + options)));
    EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", published_})));
    return shard_contents(sink_);
  }

  std::string model_ = dir_ / "model";
  std::string published_ = dir_ / "published";
};

TEST_F(GptOss, CodesPassThroughWholeAsTheyAre) {
  const auto held = shards(2, published_, {"--inference", "tp=1"});
  const SafetensorsFile file = read();
  const auto expect = [&](const std::string& parameter, const std::string& form, const std::string& tensor) {
    const std::string at = "model.layers.1.mlp.experts.";
    EXPECT_EQ(held.at("rank-0.h5: " + at + parameter), form + file.tensors.at(at + tensor).data) << parameter;
  };
  // The inner size is a multiple of 64, so that nothing is padded.
  expect("w13_weight", "e2m1x2[4, 384, 32]", "gate_up_proj_blocks");
  expect("w13_weight_scale", "float8_e8m0fnu[4, 384, 2]", "gate_up_proj_scales");
  expect("w2_weight", "e2m1x2[4, 64, 96]", "down_proj_blocks");
  expect("w2_weight_scale", "float8_e8m0fnu[4, 64, 6]", "down_proj_scales");
}

TEST_F(GptOss, CheckpointsThatAreWrittenAreLikeThePublishedOnes) {
  const std::string canonical = dir_ / "canonical";
  EXPECT_TRUE(done(run_plain({"convert", "--source", published_, "--to", "hf", "--output", canonical})));
  const SafetensorsFile converted = SafetensorsFile::read(canonical + "/model.safetensors");
  const SafetensorsFile synthetic = SafetensorsFile::read(dir_ / "synthetic/model.safetensors");
  const SafetensorsFile file = read();
  EXPECT_EQ(converted.tensors.size(), file.tensors.size());
  for (const auto& [name, tensor] : file.tensors) {
    const auto& written = converted.tensors.at(name);
    EXPECT_EQ(written.shape, tensor.shape) << name;
    EXPECT_EQ(synthetic.tensors.at(name).shape, tensor.shape) << name;
    // A bias of experts is float32 in the model.
    const std::string data =
        written.dtype == "F32" && tensor.dtype == "BF16" ? widened(tensor.data) : tensor.data;
    EXPECT_EQ(written.data, data) << name;
  }
  const std::string at = "model.layers.0.mlp.experts.";
  EXPECT_EQ(converted.tensors.at(at + "gate_up_proj_blocks").shape,
            (std::vector<std::int64_t>{kExperts, 2 * kInner, kHidden / 32, 16}));
  EXPECT_EQ(converted.tensors.at(at + "gate_up_proj_blocks").dtype, "U8");
  EXPECT_EQ(converted.tensors.at(at + "down_proj_scales").shape,
            (std::vector<std::int64_t>{kExperts, kHidden, kInner / 32}));
  EXPECT_EQ(converted.tensors.at(at + "down_proj_scales").dtype, "U8");
  EXPECT_EQ(converted.tensors.at(at + "gate_up_proj_bias").shape,
            (std::vector<std::int64_t>{kExperts, 2 * kInner}));
}

TEST_F(GptOss, EveryContainerAndFormOfACheckpointGivesTheSameShards) {
  const std::string hdf5 = dir_ / "published.h5";
  const std::string canonical = dir_ / "canonical";
  EXPECT_TRUE(done(run_plain({"convert", "--source", published_, "--output", hdf5})));
  EXPECT_TRUE(done(run_plain({"convert", "--source", published_, "--to", "hf", "--output", canonical})));
  for (const Words& options :
       {Words{"--inference", "tp=2", "--moe-layout", "triton"},
        Words{"--inference", "tp=2", "--moe-layout", "trtllm"},
        Words{"--inference", "tp=2,ep=2", "--moe-layout", "trtllm", "--engine", "vllm"}}) {
    const auto expected = shards(3, published_, options);
    EXPECT_EQ(shards(4, hdf5, options + Words{"--trainers", "2"}), expected);
    EXPECT_EQ(shards(3, canonical, options), expected);
  }
}

TEST_F(GptOss, WhatIsNotAsPublishedIsRefused) {
  const std::string blocks = "model.layers.0.mlp.experts.gate_up_proj_blocks";
  const std::string scales = "model.layers.0.mlp.experts.down_proj_scales";
  const Words plan{"plan", "--source", published_, "--inference", "tp=2"};
  const SafetensorsFile good = read();
  SafetensorsFile file = good;
  file.tensors.at(blocks).shape = {kExperts, kInner, 2 * kHidden / 32, 16};
  write(file);
  EXPECT_TRUE(refused(run_plain(plan), 65, {blocks, "[4, 192, 4, 16]", "the model has [4, 384, 2, 16]"}));
  file = good;
  file.tensors.erase(scales);
  write(file);
  EXPECT_TRUE(refused(run_plain(plan), 65, {scales + " [4, 64, 6] is missing"}));
  // Values, where the config says that there are codes.
  file = good;
  file.tensors["model.layers.0.mlp.experts.gate_up_proj"] = {
      "BF16", {kExperts, kHidden, 2 * kInner}, std::string(kExperts * kHidden * kInner * 4, '\0')};
  file.tensors.erase(blocks);
  write(file);
  EXPECT_TRUE(refused(run_plain(plan), 65, {blocks + " [4, 384, 2, 16] is missing", "gate_up_proj'"}));
  file = good;
  file.tensors.at(blocks).dtype = "F16";
  file.tensors.at(blocks).data += file.tensors.at(blocks).data;
  write(file);
  EXPECT_TRUE(refused(run_plain(plan), 65, {blocks, "float16", "quantization_config", "holds codes"}));
  write(good);
  // Codes, where the config says that there are values.
  auto config = read_json(published_ + "/config.json");
  config.erase("quantization_config");
  put_file(dir_ / "values.json", config.dump());
  EXPECT_TRUE(refused(
      run_plain(plan + Words{"--model", dir_ / "values.json"}), 65,
      {"gate_up_proj [4, 64, 384] is missing", "gate_up_proj_blocks", "MXFP4", "quantization_config"}));
  EXPECT_TRUE(
      refused(run_plain(plan + Words{"--moe-layout", "cutlass"}), 64, {"--moe-layout cutlass", "trtllm"}));
  EXPECT_TRUE(refused(run_plain(plan + Words{"--quantize", "fp8-block"}), 64, {"already quantised"}));
}

}  // namespace
}  // namespace weightcast::test_support
