// --quantize: the same bits at either side, in every layout that takes them, from values and from checkpoints
// that hold codes.

#include <fstream>
#include <set>

#include "cli/cli.hpp"

namespace weightcast::test_support {
namespace {

constexpr const char* kBlocks = "block-qwen3-moe";

struct Case {
  std::string quantizer;
  std::string layout;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.quantizer << " in " << c.layout;
}

std::string test_name(const ::testing::TestParamInfo<Case>& test) {
  std::string name = test.param.quantizer + "_" + test.param.layout;
  std::replace_if(
      name.begin(), name.end(), [](char c) { return c == '-' || c == ':'; }, '_');
  return name;
}

class Quantized : public CliTest, public ::testing::WithParamInterface<Case> {
 protected:
  std::string synth(const std::string& name = "model") {
    const std::string source = dir_ / name;
    EXPECT_TRUE(done(run_plain({"synth", "--model", model_folder(kBlocks), "--output", source})));
    return source;
  }

  /// Shards of a job that quantises.
  std::map<std::string, std::string> shards(int ranks, const std::string& source, const Words& options) {
    const std::string json = dir_ / "report.json";
    EXPECT_TRUE(
        done(run_job(ranks, Words{"sync", "--source", source, "--sink", "hdf5:" + sink_, "--json", json,
                                  "--moe-layout", GetParam().layout, "--quantize", GetParam().quantizer} +
                                options)));
    EXPECT_TRUE(read_json(json).at("verified").get<bool>());
    EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", source})));
    return shard_contents(sink_);
  }
};

TEST_P(Quantized, BothSidesGiveTheSameBits) {
  const std::string source = synth();
  const auto at_source = shards(3, source, {"--inference", "tp=2,ep=2"});
  // Other buckets, other roots and other hands.
  const auto at_destination = shards(4, source,
                                     {"--inference", "tp=2,ep=2", "--trainers", "2", "--bucket-size", "64KiB",
                                      "--quantize-at", "destination"});
  EXPECT_EQ(at_source, at_destination);
  const auto colocated =
      shards(2, source, {"--inference", "tp=2,ep=2", "--colocate", "--bucket-size", "128KiB"});
  EXPECT_EQ(at_source, colocated);
}

INSTANTIATE_TEST_SUITE_P(Layouts, Quantized,
                         ::testing::Values(Case{"fp8-block", "triton"}, Case{"fp8-block", "trtllm"},
                                           Case{"fp8-block", "trtllm-shuffled"},
                                           Case{"fp8-block:ue8m0", "deepgemm"}, Case{"fp8-tensor", "cutlass"},
                                           Case{"fp8-channel", "triton"}, Case{"mxfp8", "triton"},
                                           Case{"mxfp8", "trtllm"}, Case{"nvfp4", "cutlass"},
                                           Case{"nvfp4", "trtllm"}, Case{"nvfp4", "cute-dsl"},
                                           Case{"mxfp4", "trtllm"}),
                         test_name);

class QuantizedJobs : public CliTest {
 protected:
  std::string synth(const std::string& model = kBlocks, const Words& more = {}) {
    const std::string source = dir_ / "model";
    EXPECT_TRUE(done(run_plain(Words{"synth", "--model", model_folder(model), "--output", source} + more)));
    return source;
  }

  void sync(const std::string& source, const Words& options) {
    EXPECT_TRUE(done(run_job(
        3, Words{"sync", "--source", source, "--inference", "tp=2", "--sink", "hdf5:" + sink_} + options)));
  }

  /// The config of the block model with another field, in a folder of its own.
  std::string config_with(const std::string& field, const nlohmann::json& value) {
    nlohmann::json config = read_json(model_folder(kBlocks) + "/config.json");
    config[field] = value;
    put_file(dir_ / "config/config.json", config.dump());
    return dir_ / "config";
  }

  static void flip_byte(const std::string& path, const std::string& dataset, std::int64_t byte) {
    const Checkpoint file = read_checkpoint(path);
    const StoredTensor* tensor = file.find(dataset);
    ASSERT_NE(tensor, nullptr) << dataset;
    std::fstream stream(path, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekg(tensor->offset + byte);
    const char old = static_cast<char>(stream.get());
    stream.seekp(tensor->offset + byte);
    stream.put(static_cast<char>(old ^ 1));
  }
};

TEST_F(QuantizedJobs, FewerBytesTravelAtTheSource) {
  const auto wire_bytes = [&](const Words& options) {
    const std::string json = dir_ / "plan.json";
    EXPECT_TRUE(done(run_plain(
        Words{"plan", "--model", model_folder(kBlocks), "--inference", "tp=2", "--json", json} + options)));
    return read_json(json).at("wire_bytes").get<std::int64_t>();
  };
  const std::int64_t values = wire_bytes({});
  EXPECT_EQ(wire_bytes({"--quantize", "fp8-block", "--quantize-at", "destination"}), values);
  // Embedding and head, 320 × 256 each, stay as they are; alignment adds a little.
  const std::int64_t kept = 2 * 320 * 256 * 2;
  const auto fp8 = static_cast<double>(wire_bytes({"--quantize", "fp8-block"}) - kept);
  EXPECT_NEAR(fp8 / static_cast<double>(values - kept), 0.5, 0.01);
  const auto nvfp4 =
      static_cast<double>(wire_bytes({"--quantize", "nvfp4", "--moe-layout", "cutlass"}) - kept);
  EXPECT_NEAR(nvfp4 / static_cast<double>(values - kept), 9.0 / 32, 0.01);
}

TEST_F(QuantizedJobs, RoutersNormsEmbeddingAndHeadStayAsTheyAre) {
  sync(synth(), {"--quantize", "fp8-channel"});
  const Checkpoint shard = read_checkpoint(sink_ + "/rank-0.h5");
  int quantized = 0;
  for (const StoredTensor& tensor : shard.tensors) {
    const bool linear = tensor.name.find("_proj.weight") != std::string::npos ||
                        tensor.name.find("experts.w") != std::string::npos;
    const bool scale = tensor.name.ends_with("_scale");
    EXPECT_EQ(tensor.dtype, !linear ? DType::kBF16 : scale ? DType::kF32 : DType::kF8E4M3) << tensor.name;
    quantized += linear && !scale ? 1 : 0;
  }
  // qkv, o of two layers; w13 and w2; gate_up and down.
  EXPECT_EQ(quantized, 8);
}

TEST_F(QuantizedJobs, ShardsOfTrainers) {
  const std::string source = synth();
  const std::string shards = dir_ / "megatron";
  const std::string alloc = "megatron:(attn:d1p1t2|ffn:d1p1t1e2)";
  EXPECT_TRUE(done(run_plain(
      {"convert", "--source", source, "--to", "megatron", "--trainer-alloc", alloc, "--output", shards})));
  for (const char* side : {"source", "destination"}) {
    for (const char* quantizer : {"fp8-block", "nvfp4"}) {
      EXPECT_TRUE(done(run_job(
          4, {"sync", "--source", shards, "--trainer-alloc", alloc, "--inference", "tp=2", "--moe-layout",
              "trtllm", "--quantize", quantizer, "--quantize-at", side, "--sink", "hdf5:" + sink_})));
      EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", source})));
    }
  }
}

TEST_F(QuantizedJobs, BenchVerifiesWhatItQuantises) {
  for (const char* quantizer : {"fp8-block", "nvfp4"}) {
    for (const char* side : {"source", "destination"}) {
      const std::string json = dir_ / "bench.json";
      EXPECT_TRUE(
          done(run_job(2, {"bench", "--model", model_folder(kBlocks), "--moe-layout", "trtllm", "--quantize",
                           quantizer, "--quantize-at", side, "--iterations", "1", "--json", json})));
      EXPECT_TRUE(read_json(json).at("verified").get<bool>());
    }
  }
}

// Checkpoints that hold codes and scales.

struct Stored {
  std::string name;
  nlohmann::json config;
  std::string layout;
};

std::ostream& operator<<(std::ostream& out, const Stored& stored) {
  return out << stored.name;
}

class StoredCodes : public QuantizedJobs, public ::testing::WithParamInterface<Stored> {};

TEST_P(StoredCodes, PassThrough) {
  const std::string model = config_with("quantization_config", GetParam().config);
  const std::string source = dir_ / "model";
  EXPECT_TRUE(done(run_plain({"synth", "--model", model, "--output", source})));
  sync(source, {"--moe-layout", GetParam().layout, "--bucket-size", "64KiB"});
  EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", source})));
  EXPECT_TRUE(
      refused(run_job(3, {"sync", "--source", source, "--inference", "tp=2", "--quantize", "fp8-block"}), 64,
              {"--quantize fp8-block", "already quantised"}));
}

INSTANTIATE_TEST_SUITE_P(
    Forms, StoredCodes,
    ::testing::Values(
        Stored{"Fp8Block", {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}}, "triton"},
        Stored{"Fp8BlockKept",
               {{"quant_method", "fp8"},
                {"weight_block_size", {128, 128}},
                {"modules_to_not_convert", {"model.layers.0.self_attn.o_proj", "model.layers.1"}}},
               "trtllm"},
        Stored{
            "Channel",
            {{"quant_method", "compressed-tensors"},
             {"config_groups",
              {{"group_0", {{"weights", {{"num_bits", 8}, {"type", "float"}, {"strategy", "channel"}}}}}}}},
            "triton"},
        Stored{"Nvfp4",
               {{"quant_method", "modelopt"}, {"quant_algo", "NVFP4"}, {"ignore", {"re:.*o_proj"}}},
               "cutlass"},
        Stored{"Mxfp8", {{"quant_method", "mxfp8"}}, "trtllm"}),
    [](const auto& test) { return test.param.name; });

// What is said of them.

TEST_F(QuantizedJobs, PlanAndInspectSayWhatIsMade) {
  const Words plan{"plan", "--model", model_folder(kBlocks)};
  EXPECT_TRUE(has(run_plain(plan + Words{"--quantize", "none"}).out,
                  {"# experts    triton, weights as in the model"}));
  EXPECT_TRUE(has(run_plain(plan + Words{"--quantize", "nvfp4:unit", "--moe-layout", "trtllm"}).out,
                  {"# experts    trtllm, nvfp4:unit made at the source"}));
  sync(synth(), {"--quantize", "fp8-block:ue8m0", "--moe-layout", "deepgemm"});
  const std::string json = dir_ / "inspect.json";
  const auto shard = run_plain({"inspect", sink_ + "/rank-1.h5", "--json", json});
  EXPECT_TRUE(has(shard.out, {"# moe_layout: deepgemm", "# quantizer: fp8-block:ue8m0"}));
  EXPECT_EQ(read_json(json).at("attributes").at("moe_layout"), "deepgemm");
}

TEST_F(QuantizedJobs, ModelOptsOwnFileCountsWhereTheConfigSaysNothing) {
  const nlohmann::json quantization{{"quant_algo", "NVFP4"}, {"exclude_modules", {"lm_head", "*o_proj"}}};
  const std::string folder = dir_ / "modelopt";
  put_file(folder + "/config.json", read_json(model_folder(kBlocks) + "/config.json").dump());
  const std::string file = folder + "/hf_quant_config.json";
  put_file(file, nlohmann::json{{"producer", {{"name", "modelopt"}}}, {"quantization", quantization}}.dump());
  const std::string source = dir_ / "model";
  EXPECT_TRUE(done(run_plain({"synth", "--model", folder, "--output", source})));
  const std::string json = dir_ / "inspect.json";
  EXPECT_TRUE(done(run_plain({"inspect", source, "--json", json})));
  const nlohmann::json listed = read_json(json);
  std::set<std::string> names;
  for (const auto& tensor : listed.at("tensors")) names.insert(tensor.at("name"));
  EXPECT_TRUE(names.contains("model.layers.0.self_attn.q_proj.weight_scale_2"));
  EXPECT_FALSE(names.contains("model.layers.0.self_attn.o_proj.weight_scale_2"));
  put_file(file, nlohmann::json{{"quantization", {{"quant_algo", "W4A8"}}}}.dump());
  EXPECT_TRUE(refused(run_plain({"plan", "--model", folder}), 65, {"hf_quant_config.json", "W4A8"}));
  // Weights that are values after all: what says otherwise is that file.
  const std::string values = dir_ / "values";
  std::filesystem::copy(trained(0), values);
  put_file(values + "/hf_quant_config.json",
           nlohmann::json{{"quantization", {{"quant_algo", "FP8"}, {"exclude_modules", 7}}}}.dump());
  EXPECT_TRUE(refused(run_plain({"plan", "--source", values}), 65,
                      {values + "/hf_quant_config.json: field 'quantization.exclude_modules' is 7"}));
  put_file(values + "/hf_quant_config.json",
           nlohmann::json{{"quantization", {{"quant_algo", "FP8"}}}}.dump());
  const Words blamed{"field 'quantization' of " + values + "/hf_quant_config.json", "remove the file"};
  EXPECT_TRUE(refused(run_plain({"plan", "--source", values}), 65, blamed));
  EXPECT_TRUE(refused(run_job(2, {"sync", "--source", values}), 65, blamed));
  // Only the cache is quantised.
  put_file(file, nlohmann::json{{"quantization", {{"quant_algo", nullptr}}}}.dump());
  EXPECT_TRUE(has(run_plain({"plan", "--model", folder}).out, {"weights as in the model"}));
  put_file(file, "{}");
  EXPECT_TRUE(
      refused(run_plain({"plan", "--model", folder}), 65, {"hf_quant_config.json", "'quantization'"}));
}

// Bad input.

TEST_F(QuantizedJobs, UnknownNames) {
  const Words plan{"plan", "--model", model_folder(kBlocks)};
  EXPECT_TRUE(refused(run_plain(plan + Words{"--quantize", "int3"}), 64, {"--quantize int3", "fp8-block"}));
  EXPECT_TRUE(
      refused(run_plain(plan + Words{"--quantize", "fp8-block:te"}), 64, {"fp8-block:te", "slime", "ue8m0"}));
  EXPECT_TRUE(refused(run_plain(plan + Words{"--quantize", "fp8-block", "--quantize-at", "moon"}), 64,
                      {"--quantize-at", "moon", "source", "destination"}));
  EXPECT_TRUE(
      refused(run_plain(plan + Words{"--quantize-at", "source"}), 64, {"--quantize-at", "add --quantize"}));
}

TEST_F(QuantizedJobs, LayoutsAndQuantisersThatDoNotGoTogether) {
  const Words plan{"plan", "--model", model_folder(kBlocks)};
  EXPECT_TRUE(refused(run_plain(plan + Words{"--quantize", "nvfp4", "--moe-layout", "triton"}), 64,
                      {"triton", "nvfp4", "cutlass"}));
  EXPECT_TRUE(refused(run_plain(plan + Words{"--quantize", "fp8-block", "--moe-layout", "triton-kernels"}),
                      64, {"triton-kernels", "fp8-block"}));
  // Also where no layout would do for the sizes of this model.
  const Words trained_plan{"plan", "--source", trained(0), "--quantize", "fp8-block", "--moe-layout"};
  EXPECT_TRUE(refused(run_plain(trained_plan + Words{"deepgemm-mega"}), 64,
                      {"--moe-layout deepgemm-mega: takes --quantize mxfp4 or none, not fp8-block"}));
  EXPECT_TRUE(refused(run_plain(plan + Words{"--moe-layout", "cute-dsl"}), 64, {"cute-dsl", "nvfp4"}));
}

TEST_F(QuantizedJobs, CutsThroughBlocks) {
  const Words plan{"plan", "--model", model_folder(kBlocks), "--quantize", "fp8-block"};
  // 256 of the inner size of experts are two blocks.
  EXPECT_TRUE(refused(run_plain(plan + Words{"--inference", "tp=4"}), 64,
                      {"fp8-block", "multiple of 128", "tp/ep may be 1, 2"}));
  // Experts that stay whole, but kv heads of half a block.
  nlohmann::json heads = read_json(model_folder(kBlocks) + "/config.json");
  heads["head_dim"] = 64;
  put_file(dir_ / "heads/config.json", heads.dump());
  EXPECT_TRUE(refused(
      run_plain({"plan", "--model", dir_ / "heads", "--quantize", "fp8-block", "--inference", "tp=2,ep=2"}),
      64, {"--inference", "k_proj", "128", "fp8-block", "tp"}));
}

TEST_F(QuantizedJobs, ModelsOfOtherTypes) {
  const std::string model = config_with("torch_dtype", "float32");
  EXPECT_TRUE(refused(run_plain({"plan", "--model", model, "--quantize", "mxfp8"}), 64,
                      {"--quantize mxfp8", "float32", "bfloat16"}));
}

TEST_F(QuantizedJobs, ConfigsThatNobodyKnows) {
  const std::string model = config_with("quantization_config", {{"quant_method", "gptq"}, {"bits", 4}});
  EXPECT_TRUE(refused(run_plain({"plan", "--model", model}), 65, {"quantization_config", "gptq", "fp8"}));
}

TEST_F(QuantizedJobs, ScalesMissingBesideTheirWeight) {
  const std::string plain = synth();
  // Codes without scales: the values' file under a config that promises both.
  const std::string model =
      config_with("quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}});
  EXPECT_TRUE(
      refused(run_job(2, {"sync", "--source", plain, "--model", model}), 65, {"q_proj.weight", "float8"}));
}

TEST_F(QuantizedJobs, VerifyAgainstCodesOfAnotherKind) {
  sync(synth(), {"--quantize", "nvfp4", "--moe-layout", "trtllm"});
  const std::string model =
      config_with("quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}});
  const std::string codes = dir_ / "codes";
  EXPECT_TRUE(done(run_plain({"synth", "--model", model, "--output", codes})));
  EXPECT_TRUE(
      refused(run_plain({"verify", sink_, "--source", codes}), 65, {sink_, "nvfp4", "fp8-block", codes}));
}

TEST_F(QuantizedJobs, VerifyFindsAChangedCodeScaleAndScalar) {
  const std::string source = synth();
  const std::string at = "model.layers.0.mlp.experts.";
  const std::string shard = sink_ + "/rank-1.h5";
  const auto expect_found = [&](const std::string& dataset, std::int64_t byte) {
    sync(source, {"--quantize", "nvfp4", "--moe-layout", "trtllm"});
    flip_byte(shard, dataset, byte);
    EXPECT_TRUE(refused(run_plain({"verify", sink_, "--source", source}), 66, {"rank-1.h5", dataset}));
  };
  expect_found(at + "w13_weight", 4321);
  expect_found(at + "w2_weight_scale", 99);
  expect_found(at + "w13_weight_scale_2", 5);
  expect_found("model.layers.0.self_attn.qkv_proj.weight_scale", 17);
}

TEST_F(QuantizedJobs, MixedShards) {
  const std::string source = synth();
  sync(source, {"--quantize", "fp8-block"});
  const std::string shard = get_file(sink_ + "/rank-1.h5");
  sync(source, {"--quantize", "fp8-block:ue8m0"});
  put_file(sink_ + "/rank-1.h5", shard);
  EXPECT_TRUE(refused(run_plain({"verify", sink_, "--source", source}), 65, {"mixed", "fp8-block:ue8m0"}));
}

}  // namespace
}  // namespace weightcast::test_support
