// Small models of every family, of sizes that are drawn: from a checkpoint to Megatron's trainers in any
// layout, from their shards to an engine's in any, verified against the checkpoint, and back to it.

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cli/families.hpp"

namespace weightcast::test_support {
namespace {

using nlohmann::json;

class Draw {
 public:
  Draw(const std::string& model, int seed) : config_(base_of(model)) {
    std::seed_seq of_both(model.begin(), model.end());
    random_.seed(of_both);
    random_.discard(1000 * static_cast<unsigned long long>(seed));
    gemma_ = model.starts_with("gemma4") || model.starts_with("Gemma4");
    gpt_oss_ = model == "gpt-oss";
    trained_ = model != "gemma4-ple";
    one_kv_head_ =
        model == "gemma4-dense" || model.starts_with("Gemma4");  // in a layer whose values are its keys
    json& sizes = config_.contains("text_config") ? config_["text_config"] : config_;
    draw_sizes(sizes);
    draw_layers(sizes);
    draw_trainers();
    draw_engine();
  }

  const json& config() const { return config_; }
  bool trained() const { return trained_; }
  int trainers() const { return trained() ? static_cast<int>(d_ * p_ * t_) : 2; }
  int engine_ranks() const { return static_cast<int>(tp_); }
  std::string trainer_allocation() const {
    return fmt::format("megatron:(attn:d{}p{}t{}|ffn:p{}t{}e{})", d_, p_, t_, p_, etp_, e_);
  }
  /// Of linear attention, where there is some.
  Words trainer_form() const { return form_ == "cut" ? Words{} : Words{"--trainer-linear-attention", form_}; }
  Words engine_words() const {
    return {"--engine", vllm_ ? "vllm" : "sglang", "--inference", fmt::format("tp={},ep={}", tp_, ep_)};
  }
  std::string text() const {
    return fmt::format("{} {} {}", trainer_allocation(), fmt::join(engine_words(), " "), config_.dump());
  }

 private:
  /// The config of a folder of tests/data/vllm, or of a wrapper by its architecture.
  static json base_of(const std::string& model) {
    for (const Wrapped& wrapped : kWrapped) {
      if (model == wrapped.architecture) return config_of(wrapped);
    }
    return read_json(std::string(kData) + "/vllm/" + model + "/config.json");
  }

  void draw_sizes(json& sizes) {
    const auto set = [&](const char* field, const std::vector<std::int64_t>& choices) {
      if (sizes.contains(field) && sizes.at(field).is_number_integer() && sizes.at(field) > 0) {
        sizes[field] = pick(choices);
      }
    };
    set("hidden_size", {32, 48, 80, 96});
    set("vocab_size", {130, 255, 320, 411});
    for (const char* field : {"intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size",
                              "moe_shared_expert_intermediate_size"}) {
      set(field, {16, 24, 56, 72});
    }
    for (const char* field : {"kv_lora_rank", "q_lora_rank", "v_head_dim", "qk_nope_head_dim",
                              "qk_rope_head_dim", "index_head_dim", "ssm_state_size", "mamba_head_dim",
                              "linear_key_head_dim", "linear_value_head_dim"}) {
      set(field, {8, 12, 16, 20});
    }
    if (!gemma_ && !sizes.contains("kv_lora_rank")) {
      set("head_dim", {8, 12, 16});
      set("num_attention_heads", {4, 8});
      set("num_key_value_heads", {2, 4});
    }
    for (const char* field : {"n_routed_experts", "num_experts", "num_local_experts"}) set(field, {4, 8, 12});
    if (sizes.contains("kv_lora_rank")) set("n_shared_experts", {1, 2});
    set("linear_num_key_heads", {2, 4});
    if (sizes.contains("linear_num_key_heads")) {
      sizes["linear_num_value_heads"] = sizes["linear_num_key_heads"].get<std::int64_t>() * pick({1, 2, 3});
    }
    set("n_groups", {1, 2});
    set("mamba_num_heads", {2, 4, 8});
    if (!gemma_) sizes["tie_word_embeddings"] = pick({0, 1}) == 1;
    if (config_.contains("text_config")) config_["tie_word_embeddings"] = sizes["tie_word_embeddings"];
    has_linear_ = sizes.contains("linear_num_key_heads");
    has_experts_ = sizes.contains("n_routed_experts") || sizes.contains("num_local_experts") ||
                   (sizes.contains("num_experts") && !sizes.at("num_experts").is_null());
    most_t_ = sizes.contains("n_groups") ? sizes.at("n_groups").get<std::int64_t>() : 2;
  }

  /// Where a list says of each layer which of two kinds it is, any of both.
  void draw_layers(json& sizes) {
    for (const char* field : {"layer_types", "layers_block_type"}) {
      const bool mixed =
          sizes.contains(field) &&
          std::ranges::find(sizes.at(field), json("linear_attention")) != sizes.at(field).end();
      if (!mixed) continue;
      const std::vector<json> words = sizes.at(field);
      for (json& layer : sizes[field]) layer = words.at(static_cast<std::size_t>(below(std::ssize(words))));
    }
    layers_ = sizes.contains("num_hidden_layers") ? sizes.at("num_hidden_layers").get<std::int64_t>()
                                                  : std::ssize(sizes.at("layers_block_type"));
  }

  void draw_trainers() {
    t_ = one_kv_head_ ? 1 : pick({1, most_t_});
    d_ = pick({1, 2});
    p_ = layers_ % 2 == 0 && d_ * t_ < 4 ? pick({1, 2}) : 1;
    const std::vector<std::string> forms{"cut", "cut-plain", "whole"};
    if (has_linear_) form_ = forms.at(static_cast<std::size_t>(below(std::ssize(forms))));
    if (!has_experts_) return;
    e_ = pick({1, d_ * t_});
    if (!gpt_oss_ && e_ == 1) etp_ = pick({1, d_ * t_});
  }

  void draw_engine() {
    tp_ = pick({1, 2});
    ep_ = has_experts_ ? pick({1, tp_}) : 1;
    vllm_ = pick({0, 1}) == 1;
  }

  std::int64_t below(std::int64_t count) {
    return static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(count));
  }
  std::int64_t pick(const std::vector<std::int64_t>& choices) {
    return choices.at(static_cast<std::size_t>(below(std::ssize(choices))));
  }

  std::mt19937_64 random_;
  json config_;
  bool gemma_ = false;
  bool gpt_oss_ = false;
  bool trained_ = true;
  bool one_kv_head_ = false;
  bool has_experts_ = false;
  bool has_linear_ = false;
  std::string form_ = "cut";
  std::int64_t layers_ = 0;
  std::int64_t most_t_ = 2;
  std::int64_t d_ = 1;
  std::int64_t p_ = 1;
  std::int64_t t_ = 1;
  std::int64_t etp_ = 1;
  std::int64_t e_ = 1;
  std::int64_t tp_ = 1;
  std::int64_t ep_ = 1;
  bool vllm_ = false;
};

class FamilyDraws : public CliTest, public ::testing::WithParamInterface<std::tuple<const char*, int>> {};

TEST_P(FamilyDraws, ThereAndBack) {
  const Draw draw(std::get<0>(GetParam()), std::get<1>(GetParam()));
  SCOPED_TRACE(draw.text());
  const std::string config = dir_ / "config.json";
  const std::string whole = dir_ / "whole";
  put_file(config, draw.config().dump());
  ASSERT_TRUE(done(run_plain({"synth", "--model", config, "--output", whole})));
  Words source{"--source", whole, "--trainers", std::to_string(draw.trainers())};
  if (draw.trained()) {
    const Words layout = Words{"--trainer-alloc", draw.trainer_allocation()} + draw.trainer_form();
    const std::string shards = dir_ / "trainers";
    ASSERT_TRUE(done(
        run_plain(Words{"convert", "--source", whole, "--to", "megatron", "--output", shards} + layout)));
    source = Words{"--source", shards} + layout;
    EXPECT_TRUE(done(run_plain(Words{"convert", "--to", "hf", "--output", dir_ / "back"} + source)));
    EXPECT_TRUE(SafetensorsFile::read(dir_ / "back/model.safetensors").tensors ==
                SafetensorsFile::read(whole + "/model.safetensors").tensors);
  }
  EXPECT_TRUE(done(run_job(draw.trainers() + draw.engine_ranks(),
                           Words{"sync", "--sink", "safetensors:" + sink_} + source + draw.engine_words())));
  EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", whole})));
}

/// WEIGHTCAST_TEST_DRAWS is for a long search: `WEIGHTCAST_TEST_DRAWS=20 cli_family_draws`.
int draws() {
  const char* wanted = std::getenv("WEIGHTCAST_TEST_DRAWS");
  return wanted == nullptr ? 1 : std::atoi(wanted);
}

INSTANTIATE_TEST_SUITE_P(
    Families, FamilyDraws,
    ::testing::Combine(::testing::Values("deepseek-v3", "deepseek-v3-noqlora", "deepseek-v32", "gemma4-dense",
                                         "gemma4-moe", "gemma4-ple", "glm-moe-dsa", "glm4", "glm4-moe",
                                         "glm4-moe-lite", "gpt-oss", "llama", "minimax-m2", "mistral",
                                         "nemotron-h", "qwen2", "qwen2-moe", "qwen3", "qwen3-moe",
                                         "qwen3-next", "qwen3.5", "qwen3.5-moe", "qwen3.5-vl",
                                         "Qwen3_5MoeForConditionalGeneration",
                                         "Gemma4ForConditionalGeneration", "KimiK25ForConditionalGeneration"),
                       ::testing::Range(0, draws())),
    [](const auto& of) {
      std::string name = std::get<0>(of.param);
      std::erase_if(name, [](char c) { return c == '-' || c == '.' || c == '_'; });
      return fmt::format("{}_{}", name, std::get<1>(of.param));
    });

}  // namespace
}  // namespace weightcast::test_support
