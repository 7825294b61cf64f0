#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "model/blocks/per_layer_input.hpp"
#include "model/blocks/stacked_experts.hpp"
#include "model/families/common.hpp"
#include "model/families/families.hpp"

namespace weightcast {

namespace {

constexpr const char* kFull = "full_attention";

/// In what layers differ.
struct LayerTraits {
  std::int64_t head_dim = 0;
  std::int64_t kv_heads = 0;
  KeysAndValues keys_and_values = KeysAndValues::kOwn;

  friend bool operator==(const LayerTraits& a, const LayerTraits& b) = default;
};

/// Which layers see all tokens: every sixth and the last one, unless the config lists them.
std::vector<bool> full_layers(const ModelConfig& config, std::int64_t layers) {
  constexpr std::int64_t kStep = 6;
  const auto types = config.layer_words_or_empty("layer_types", layers, {"sliding_attention", kFull});
  std::vector<bool> full(static_cast<std::size_t>(layers));
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    const auto at = static_cast<std::size_t>(layer);
    full[at] = types.empty() ? (layer + 1) % kStep == 0 || layer == layers - 1 : types[at] == kFull;
  }
  return full;
}

/// The size that `per_layer_config` has for a layer or, without that field, `global_field` for layers that
/// see all. Throws InputError where both are there and differ.
std::int64_t size_of(const ModelConfig& config, const std::map<std::string, std::int64_t>* own,
                     const char* field, const char* global_field, std::int64_t global, std::int64_t layer,
                     std::int64_t common) {
  if (own == nullptr) return global;
  const auto found = own->find(field);
  const std::int64_t size = found == own->end() ? common : found->second;
  if (config.has(global_field) && size != global) {
    throw InputError(
        fmt::format("{}: layer {} has {} {} by field 'per_layer_config', which transformers writes, but {} "
                    "by '{}', which "
                    "the hub's files of {} have; correct the one that is wrong",
                    config.origin(), layer, field, size, global, global_field, config.architecture()));
  }
  return size;
}

std::vector<LayerTraits> traits_of(const ModelConfig& config, const AttentionSizes& common,
                                   std::int64_t layers) {
  const auto own = config.integers_of_layers("per_layer_config", layers, {"head_dim", "num_key_value_heads"});
  const bool listed = config.has("per_layer_config");
  const std::vector<bool> full = full_layers(config, layers);
  const bool one = config.boolean_or({"attention_k_eq_v"}, false);
  constexpr std::int64_t kGlobalHeadDim = 512;
  const std::int64_t global_dim = config.integer_or({"global_head_dim"}, kGlobalHeadDim);
  const std::int64_t global_heads =
      one ? config.integer_or({"num_global_key_value_heads"}, common.kv_heads) : common.kv_heads;
  const std::int64_t shared = config.count_or({"num_kv_shared_layers"}, 0);
  if (shared >= layers) {
    throw InputError(
        fmt::format("{}: field 'num_kv_shared_layers' is {} of {} layers, but the first of {} have keys and "
                    "values of their "
                    "own; correct it",
                    config.origin(), shared, layers, config.architecture()));
  }
  std::vector<LayerTraits> traits;
  const std::map<std::string, std::int64_t> nothing;
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    const auto found = own.find(layer);
    const auto* const mine = !listed ? nullptr : found == own.end() ? &nothing : &found->second;
    LayerTraits& of = traits.emplace_back(LayerTraits{common.head_dim, common.kv_heads});
    if (full[static_cast<std::size_t>(layer)]) {
      of.head_dim = size_of(config, mine, "head_dim", "global_head_dim", global_dim, layer, common.head_dim);
      of.kv_heads = size_of(config, mine, "num_key_value_heads", "num_global_key_value_heads", global_heads,
                            layer, common.kv_heads);
      if (one) of.keys_and_values = KeysAndValues::kOne;
    } else if (mine != nullptr) {
      if (const auto dim = mine->find("head_dim"); dim != mine->end()) of.head_dim = dim->second;
      if (const auto heads = mine->find("num_key_value_heads"); heads != mine->end())
        of.kv_heads = heads->second;
    }
    if (layer >= layers - shared) of.keys_and_values = KeysAndValues::kShared;
    if (common.heads % of.kv_heads != 0) {
      throw InputError(
          fmt::format("{}: num_attention_heads {} is no multiple of the {} key and value heads of layer {}; "
                      "correct what is wrong",
                      config.origin(), common.heads, of.kv_heads, layer));
    }
  }
  return traits;
}

/// A tensor that all ranks have whole. What trainers call it as slime's Megatron does, which has all tensors
/// as they are; what Megatron-Bridge trains is in part computed of them.
BlockPtr whole(const std::string& name, Shape shape, const std::string& trainer,
               std::vector<std::string> other_trainer = {}) {
  return std::make_shared<Replicated>(Names{name, name, trainer, std::move(other_trainer)}, shape);
}
BlockPtr whole(const std::string& name, Shape shape) {
  return whole(name, shape, name);
}

/// What stands beside the MLP of a layer with experts, and the norms around both.
LayerBlocks experts(SizeFields& sizes, std::int64_t hidden) {
  StackedExpertSizes routed;
  routed.hidden = hidden;
  routed.inner = sizes.integer({"moe_intermediate_size", "expert_intermediate_size"});
  routed.experts = sizes.integer({"num_experts"});
  return {whole("post_feedforward_layernorm_1.weight", {hidden}),
          whole("pre_feedforward_layernorm_2.weight", {hidden}, "mlp.pre_feedforward_layernorm_2.weight",
                {"pre_feedforward_layernorm_2.weight"}),
          whole("router.proj.weight", {routed.experts, hidden}, "mlp.router.proj.weight"),
          whole("router.scale", {hidden}, "mlp.router.scale"),
          whole("router.per_expert_scale", {routed.experts}, "mlp.router.per_expert_scale"),
          std::make_shared<StackedExperts>(Names{"experts", "experts", "mlp.experts"}, routed),
          whole("post_feedforward_layernorm_2.weight", {hidden})};
}

std::unique_ptr<Family> make_text(const ModelConfig& config, const ModelConfig* around) {
  SizeFields sizes(config);
  const AttentionSizes common = attention_sizes(sizes, config, {.head_dim = 256});
  const std::int64_t hidden = common.hidden;
  if (config.boolean_or({"attention_bias"}, false)) {
    throw InputError(
        fmt::format("{}: field 'attention_bias' is true, but biases of {} are not known; transformers writes "
                    "false unless it "
                    "is told otherwise",
                    config.origin(), config.architecture()));
  }
  Ends ends;
  ends.tied = true;
  ends.in_sglang = InSglang::kWhole;
  DecoderParts parts = common_parts(sizes, config, hidden, ends);
  require_no_codes(parts, config);
  parts.sglang.replaced = {{".router.per_expert_scale", ".moe.per_expert_scale"},
                           {".experts.", ".moe.experts."}};
  if (around != nullptr) {
    parts.unsent = unsent_towers(
        *around, {{"vision_config", "model.vision_tower."}, {"audio_config", "model.audio_tower."}});
    parts.vllm.prefix = "language_model.";
    parts.in_files = {{"model.", "model.language_model."}};
    parts.sglang.replaced.emplace_back("model.", "language_model.");
    for (const std::string part : {"vision_tower.", "embed_vision.", "audio_tower.", "embed_audio."}) {
      parts.towers.push_back(part);
      parts.towers.push_back("model." + part);
    }
    parts.left_out = parts.towers;
  }
  const bool says_none = config.is_null({"hidden_size_per_layer_input"});
  const std::int64_t width = config.count_or({"hidden_size_per_layer_input"}, says_none ? 0 : 256);
  if (width > 0) {
    parts.beside_embedding.push_back(std::make_shared<PerLayerInput>(PerLayerInputSizes{
        sizes.integer_or({"vocab_size_per_layer_input"}, 262'144), hidden, parts.layers, width}));
  }
  const std::int64_t inner = sizes.integer({"intermediate_size"});
  const bool wide = config.boolean_or({"use_double_wide_mlp"}, false);
  const bool sparse = config.boolean_or({"enable_moe_block"}, false);
  const auto make = [&](const LayerTraits& traits) {
    AttentionSizes heads = common;
    heads.head_dim = traits.head_dim;
    heads.kv_heads = traits.kv_heads;
    heads.keys_and_values = traits.keys_and_values;
    const bool shared = traits.keys_and_values == KeysAndValues::kShared;
    LayerBlocks blocks{input_norm(hidden), attention(heads), head_norm("q", heads.head_dim)};
    if (!shared) blocks.push_back(head_norm("k", heads.head_dim));
    blocks.push_back(whole("post_attention_layernorm.weight", {hidden}));
    // Beside experts the MLP has a module of its own at trainers.
    const std::string mlp = sparse ? "dense_mlp." : "mlp.";
    blocks.push_back(whole("pre_feedforward_layernorm.weight", {hidden}, mlp + "linear_fc1.layer_norm_weight",
                           {"pre_mlp_layernorm.weight"}));
    blocks.push_back(std::make_shared<GatedMlp>(Names{"mlp.", "mlp.", mlp},
                                                MlpSizes{hidden, shared && wide ? 2 * inner : inner}));
    if (sparse) {
      const LayerBlocks beside = experts(sizes, hidden);
      blocks.insert(blocks.end(), beside.begin(), beside.end());
    }
    blocks.push_back(whole("post_feedforward_layernorm.weight", {hidden}));
    if (width > 0) {
      blocks.push_back(whole("per_layer_input_gate.weight", {width, hidden}));
      blocks.push_back(whole("per_layer_projection.weight", {hidden, width}));
      blocks.push_back(whole("post_per_layer_input_norm.weight", {hidden}));
    }
    blocks.push_back(whole("layer_scalar", {1}));
    return blocks;
  };
  const std::vector<LayerTraits> traits = traits_of(config, common, parts.layers);
  const bool shares = std::ranges::any_of(
      traits, [](const LayerTraits& of) { return of.keys_and_values == KeysAndValues::kShared; });
  if (shares || width > 0) {
    parts.trainers_refused =
        fmt::format("what Megatron's trainers hold of {} with {} is not known", config.architecture(),
                    width > 0 ? "an input for each layer (hidden_size_per_layer_input)"
                              : "layers that share keys and values (num_kv_shared_layers)");
  }
  std::vector<LayerTraits> made;
  std::vector<std::size_t> kinds;
  for (const LayerTraits& of : traits) {
    const auto known = std::ranges::find(made, of);
    kinds.push_back(static_cast<std::size_t>(known - made.begin()));
    if (known != made.end()) continue;
    made.push_back(of);
    parts.kinds.push_back(make(of));
  }
  parts.kind_of = [kinds](std::int64_t layer) { return kinds.at(static_cast<std::size_t>(layer)); };
  return decoder(std::move(parts), sizes);
}

}  // namespace

/// Gemma 4: layers that see a window and some that see all, with heads of another size; norms before and
/// behind both halves of a layer. Beside the MLP there may be routed experts, beside the embedding an input
/// for each layer; the last layers may have keys and values of others.
std::unique_ptr<Family> make_gemma4(const ModelConfig& config) {
  return make_text(config, nullptr);
}

/// The text model of one that sees and hears.
std::unique_ptr<Family> make_gemma4_wrapped(const ModelConfig& config) {
  return make_text(text_model_of(config, {"gemma4_text"}), &config);
}

}  // namespace weightcast
