#pragma once

#include <string>
#include <utility>
#include <vector>

#include "cli/cli.hpp"
#include "support/megatron_shards.hpp"

namespace weightcast::test_support {

/// A model of a few layers: one of tests/data/models with some entries of its config changed.
struct SmallModel {
  std::string name;
  std::string base;
  nlohmann::json changes;
};

/// Dense and MoE, tied and not, with and without bias; numbers of heads and experts that are no powers of
/// two.
inline std::vector<SmallModel> small_models() {
  return {
      {"DenseTied", "tiny-qwen3", {}},
      {"DenseBias",
       "tiny-qwen3",
       {{"num_hidden_layers", 4},
        {"num_key_value_heads", 2},
        {"attention_bias", true},
        {"tie_word_embeddings", false},
        {"vocab_size", 259}}},
      {"DenseOdd",
       "tiny-qwen3",
       {{"num_hidden_layers", 4},
        {"hidden_size", 192},
        {"intermediate_size", 384},
        {"num_attention_heads", 6},
        {"num_key_value_heads", 3},
        {"head_dim", 32},
        {"vocab_size", 380},
        {"tie_word_embeddings", false}}},
      {"Moe", "tiny-qwen3-moe", {}},
      {"MoeTiedSparse",
       "tiny-qwen3-moe",
       {{"num_hidden_layers", 6},
        {"hidden_size", 128},
        {"head_dim", 32},
        {"intermediate_size", 256},
        {"moe_intermediate_size", 64},
        {"num_local_experts", 6},
        {"decoder_sparse_step", 2},
        {"mlp_only_layers", {3}},
        {"attention_bias", true},
        {"tie_word_embeddings", true},
        {"vocab_size", 259}}},
      {"Qwen2Tied",
       "tiny-qwen3",
       {{"architectures", {"Qwen2ForCausalLM"}},
        {"model_type", "qwen2"},
        {"num_hidden_layers", 4},
        {"num_key_value_heads", 2},
        {"tie_word_embeddings", true}}},
      {"Llama",
       "tiny-qwen3",
       {{"architectures", {"LlamaForCausalLM"}},
        {"model_type", "llama"},
        {"num_hidden_layers", 4},
        {"num_key_value_heads", 2},
        {"mlp_bias", true},
        {"attention_bias", true},
        {"tie_word_embeddings", false}}},
      {"MoeFourLayers", "tiny-qwen3-moe", {{"num_hidden_layers", 4}, {"num_local_experts", 8}}},
  };
}

inline SmallModel small_model(const std::string& name) {
  for (const SmallModel& model : small_models()) {
    if (model.name == name) return model;
  }
  throw std::runtime_error("no model " + name);
}

inline nlohmann::json config_of(const SmallModel& model) {
  auto config = read_json(model_folder(model.base) + "/config.json");
  if (!model.changes.is_null()) config.update(model.changes);
  config.erase("layer_types");
  return config;
}

/// Makes the model's Hugging Face checkpoint.
inline void make_checkpoint(const SmallModel& model, const std::string& folder) {
  put_file(folder + ".json", config_of(model).dump());
  EXPECT_TRUE(done(run_plain({"synth", "--model", folder + ".json", "--output", folder})));
}

/// Splits `model.safetensors` of a folder among trainers.
inline std::vector<SafetensorsFile> shards_of(const std::string& folder, const MegatronLayout& layout) {
  return trainer_shards(SafetensorsFile::read(folder + "/model.safetensors"),
                        read_json(folder + "/config.json"), layout);
}

/// `d2p1t4`
inline std::string letters(const std::vector<std::pair<char, std::int64_t>>& sizes) {
  std::string text;
  for (const auto& [letter, size] : sizes) text += letter + std::to_string(size);
  return text;
}

/// `megatron:(attn:…|ffn:…)`, with every letter.
inline std::string allocation_of(const MegatronLayout& layout) {
  const std::int64_t copies = layout.d * layout.t * layout.c / (layout.etp * layout.e);
  return "megatron:(attn:" + letters({{'d', layout.d}, {'p', layout.p}, {'t', layout.t}, {'c', layout.c}}) +
         "|ffn:" + letters({{'d', copies}, {'p', layout.p}, {'t', layout.etp}, {'e', layout.e}}) + ")";
}

/// The options that say what the allocation does not.
inline Words trainer_words(const MegatronLayout& layout) {
  Words words;
  if (!layout.stage_layers.empty()) {
    std::string list;
    for (const std::int64_t layers : layout.stage_layers) {
      list += (list.empty() ? "" : ",") + std::to_string(layers);
    }
    words = words + Words{"--stage-layers", list};
  }
  if (layout.pp_before_dp) words = words + Words{"--trainer-order", "tp-pp-dp"};
  if (layout.names.global_numbers) words = words + Words{"--trainer-names", "global"};
  return words;
}

/// Succeeds when two maps are equal, whose values are too long to print.
template <typename Map>
::testing::AssertionResult same(const Map& actual, const Map& expected) {
  std::string different;
  for (const auto& [name, contents] : expected) {
    const auto found = actual.find(name);
    if (found == actual.end()) {
      different += "\nmissing: " + name;
    } else if (found->second != contents) {
      different += "\ndifferent: " + name;
    }
  }
  for (const auto& [name, contents] : actual) {
    if (!expected.contains(name)) different += "\nnew: " + name;
  }
  if (different.empty()) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << different;
}

}  // namespace weightcast::test_support
