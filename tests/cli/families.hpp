#pragma once

#include <array>
#include <string>

#include "cli/cli.hpp"

namespace weightcast::test_support {

/// The text model of a wrapper, from a config of tests/data/vllm, and what its names begin with there.
struct Wrapped {
  const char* model;
  const char* architecture;
  const char* model_type;
  const char* text_type;
  const char* prefix;
  const char* tower;
};

inline constexpr std::array kWrapped{
    Wrapped{"qwen3.5", "Qwen3_5ForConditionalGeneration", "qwen3_5", "qwen3_5_text", "model.language_model.",
            "model.visual."},
    Wrapped{"qwen3.5-moe", "Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe", "qwen3_5_moe_text",
            "model.language_model.", "model.visual."},
    Wrapped{"gemma4-dense", "Gemma4ForConditionalGeneration", "gemma4", "gemma4_text",
            "model.language_model.", "model.vision_tower."},
    Wrapped{"deepseek-v3", "KimiK25ForConditionalGeneration", "kimi_k25", "deepseek_v3", "language_model.",
            "vision_tower."}};

inline nlohmann::json config_of(const Wrapped& wrapped) {
  auto text = read_json(std::string(kData) + "/vllm/" + wrapped.model + "/config.json");
  text.erase("architectures");
  text["model_type"] = wrapped.text_type;
  return {{"architectures", {wrapped.architecture}},
          {"model_type", wrapped.model_type},
          {"tie_word_embeddings", text.at("tie_word_embeddings")},
          {"text_config", text}};
}

/// Small models of single families through the program.
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
  void expect_trainers(const std::string& allocation, int trainers, const Words& form = {}) const {
    SCOPED_TRACE(allocation);
    const TempDir dir;
    const std::string shards = dir / "trainers";
    const Words layout{"--trainer-alloc", allocation};
    EXPECT_TRUE(done(run_plain(Words{"convert", "--source", source_, "--to", "megatron", "--output", shards} +
                               layout + form)));
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

}  // namespace weightcast::test_support
