#include <sys/stat.h>

#include <filesystem>
#include <functional>

#include "cli/cli.hpp"

namespace weightcast::test_support {
namespace {

using Change = std::function<void(nlohmann::json&)>;

class BadConfig : public CliTest {
 protected:
  /// Expects a job and a plan to refuse the trained checkpoint with a changed config.
  void expect_refused_config(const Change& change, const Words& in_the_line) {
    auto config = read_json(trained(0) + "/config.json");
    change(config);
    expect_refused_text(config.dump(), in_the_line);
  }

  void expect_refused_text(const std::string& text, const Words& in_the_line) {
    expect_refused_plan(text, in_the_line);
    put_old_shards();
    const auto before = folder_contents(sink_);
    EXPECT_TRUE(refused(run_job(3, sync_words(trained(0)) + Words{"--model", path_}), 65, in_the_line));
    EXPECT_EQ(folder_contents(sink_), before);
  }

  void expect_refused_plan(const std::string& text, const Words& in_the_line) {
    put_file(path_, text);
    EXPECT_TRUE(refused(run_plain({"plan", "--source", trained(0), "--model", path_}), 65, in_the_line));
  }

  std::string path_ = dir_ / "config.json";
};

TEST_F(BadConfig, NotJson) {
  expect_refused_text("{\"architectures\": ", {path_, "JSON"});
}

TEST_F(BadConfig, NoObject) {
  expect_refused_text("[]", {path_, "JSON object"});
}

TEST_F(BadConfig, UnknownArchitecture) {
  expect_refused_config(
      [](auto& config) { config["architectures"] = {"GPT2LMHeadModel"}; },
      {path_, "GPT2LMHeadModel", "not supported", "the closest that is supported is", "ForCausalLM"});
}

TEST_F(BadConfig, NamesNoModel) {
  expect_refused_config(
      [](auto& config) {
        config.erase("architectures");
        config.erase("model_type");
      },
      {path_, "'architectures'", "'model_type'", "missing", "qwen3_moe"});
}

TEST_F(BadConfig, NamesTwoModels) {
  auto config = read_json(trained(0) + "/config.json");
  config["model_type"] = "qwen3";
  expect_refused_plan(config.dump(), {path_, "Qwen3MoeForCausalLM", "'qwen3'"});
}

TEST_F(BadConfig, NestedDeeply) {
  expect_refused_plan("{\"quantization_config\": " + std::string(100'000, '['), {path_, "levels deep"});
}

TEST_F(BadConfig, LargerThanAnyModel) {
  auto config = read_json(trained(0) + "/config.json");
  config["num_local_experts"] = 1 << 24;
  expect_refused_plan(config.dump(), {path_, "num_experts 16777216", "tensors"});
}

TEST_F(BadConfig, PatternThatNeverEnds) {
  expect_refused_config(
      [](auto& config) {
        config["quantization_config"] = {{"quant_method", "fp8"}, {"ignored_layers", {"re:(.*)*(X|Y)$"}}};
      },
      {path_, "ignored_layers", "re:(.*)*(X|Y)$", "too long"});
}

TEST_F(BadConfig, NoRegularFile) {
  const std::string source = dir_ / "source";
  std::filesystem::copy(trained(0), source);
  const std::string modelopt = source + "/hf_quant_config.json";
  ASSERT_EQ(::mkfifo(modelopt.c_str(), 0600), 0);
  EXPECT_TRUE(refused(run_plain({"plan", "--source", source}), 74, {modelopt, "no regular file"}));
  EXPECT_TRUE(refused(run_plain({"plan", "--model", source}), 74, {modelopt, "no regular file"}));
  EXPECT_TRUE(refused(run_job(3, sync_words(source)), 74, {modelopt, "no regular file"}));
  for (const std::string& model : {modelopt, std::string("/dev/zero")}) {
    EXPECT_TRUE(refused(run_plain({"plan", "--model", model}), 74,
                        {"--model", model, "no regular file", "config.json"}));
  }
  std::filesystem::remove(modelopt);
  std::filesystem::create_symlink("absent", modelopt);
  EXPECT_TRUE(refused(run_plain({"plan", "--source", source}), 74, {modelopt, "No such file"}));
  std::filesystem::remove(modelopt);
  std::filesystem::remove(source + "/config.json");
  ASSERT_EQ(::mkfifo((source + "/config.json").c_str(), 0600), 0);
  EXPECT_TRUE(
      refused(run_plain({"plan", "--source", source}), 74, {source, "config.json", "no regular file"}));
}

TEST_F(BadConfig, LargerThanAnyConfig) {
  put_file(path_, "{}");
  std::filesystem::resize_file(path_, std::uintmax_t{1} << 40);
  EXPECT_TRUE(
      refused(run_plain({"plan", "--model", path_}), 65, {path_, "1099511627776 bytes", "right file"}));
}

TEST_F(BadConfig, MissingFields) {
  for (const std::string field :
       {"hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
        "moe_intermediate_size", "num_local_experts"}) {
    auto config = read_json(trained(0) + "/config.json");
    config.erase(field);
    expect_refused_plan(config.dump(), {path_, field, "missing", "Qwen3MoeForCausalLM"});
  }
  expect_refused_config([](auto& config) { config.erase("hidden_size"); },
                        {path_, "'hidden_size'", "missing"});
}

TEST_F(BadConfig, FieldsOfTheWrongKind) {
  const std::vector<std::pair<std::string, nlohmann::json>> wrong{
      {"hidden_size", "128"},         {"hidden_size", 0},   {"hidden_size", -128},
      {"num_hidden_layers", 2.5},     {"vocab_size", true}, {"tie_word_embeddings", "yes"},
      {"mlp_only_layers", {"first"}}, {"head_dim", -1}};
  for (const auto& [field, value] : wrong) {
    auto config = read_json(trained(0) + "/config.json");
    config[field] = value;
    SCOPED_TRACE(value.dump());
    expect_refused_plan(config.dump(), {path_, field});
  }
}

TEST_F(BadConfig, UnsupportedDtype) {
  expect_refused_config([](auto& config) { config["dtype"] = "float8_e4m3fn"; },
                        {path_, "float8_e4m3fn", "not supported", "bfloat16"});
}

TEST_F(BadConfig, OfAnotherModel) {
  expect_refused_config([](auto& config) { config["num_hidden_layers"] = 4; },
                        {"model.layers.3.", "missing", "--model", trained(0)});
  expect_refused_config([](auto& config) { config["num_hidden_layers"] = 2; },
                        {"model.layers.2.", "not part of the model", "--model", trained(0)});
  expect_refused_config([](auto& config) { config["hidden_size"] = 64; }, {"shape", "--model", trained(0)});
}

TEST_F(BadConfig, OfADifferentFamily) {
  EXPECT_TRUE(refused(run_plain({"plan", "--source", trained(0), "--model", model_folder("tiny-qwen3")}), 65,
                      {trained(0), "--model"}));
}

TEST_F(BadConfig, NotThere) {
  EXPECT_TRUE(refused(run_plain({"plan", "--model", dir_ / "absent.json"}), 74,
                      {dir_ / "absent.json", "No such file", "config.json"}));
  EXPECT_TRUE(refused(run_job(3, sync_words(trained(0)) + Words{"--model", dir_ / "absent.json"}), 74,
                      {dir_ / "absent.json", "No such file", "config.json"}));
}

TEST_F(BadConfig, FolderWithoutOne) {
  std::filesystem::copy(trained(0) + "/model.safetensors", dir_ / "model.safetensors");
  for (const std::string& source : {dir_.string(), dir_ / "model.safetensors"}) {
    EXPECT_TRUE(refused(run_job(3, sync_words(source)), 74, {source, "no config.json", "--model"}));
  }
  EXPECT_TRUE(refused(run_plain({"plan", "--model", dir_.string()}), 74, {dir_.string(), "config.json"}));
}

TEST_F(BadConfig, BelowAFile) {
  EXPECT_TRUE(refused(run_plain({"plan", "--model", trained(0) + "/config.json/config.json"}), 74,
                      {"/config.json/config.json", "Not a directory"}));
}

TEST_F(BadConfig, WithALayerTooFewBeforeDrafts) {
  // What stands behind the last layer would be left out as a draft's, which no config can tell.
  const std::string source = dir_ / "source";
  auto config = read_json(std::string(WEIGHTCAST_TEST_DATA) + "/vllm/glm4-moe/config.json");
  put_file(path_, config.dump());
  ASSERT_TRUE(done(run_plain({"synth", "--model", path_, "--output", source})));
  config["num_hidden_layers"] = config.at("num_hidden_layers").get<int>() - 1;
  put_file(path_, config.dump());
  EXPECT_TRUE(
      refused(run_plain({"plan", "--source", source, "--model", path_}), 65,
              {source, "model.layers.2.", "behind the model's last one", "eh_proj", "num_hidden_layers"}));
}

}  // namespace
}  // namespace weightcast::test_support
