#include <fmt/format.h>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/text.hpp"
#include "model/blocks/mamba2.hpp"
#include "model/blocks/plain_experts.hpp"
#include "model/blocks/plain_mlp.hpp"
#include "model/families/common.hpp"
#include "model/families/families.hpp"
#include "model/families/layer_kinds.hpp"

namespace weightcast {

namespace {

enum Mixer : std::uint8_t { kMamba, kAttention, kExperts, kMlp };

/// A mixer as the hub's pattern has it, as transformers 5 writes it, and as earlier versions did.
struct MixerWords {
  char letter;
  std::string_view word;
  std::string_view other_word;
};
constexpr std::array<MixerWords, 4> kMixers{{{'M', "linear_attention", "mamba"},
                                             {'*', "full_attention", "attention"},
                                             {'E', "moe", "moe"},
                                             {'-', "mlp", "mlp"}}};

constexpr const char* kList = "layers_block_type";
constexpr const char* kPattern = "hybrid_override_pattern";

std::vector<std::size_t> listed_mixers(const ModelConfig& config, std::optional<std::int64_t> layers) {
  std::vector<std::size_t> mixers;
  for (const std::string& word : config.layer_words_or_empty(
           kList, layers, {"linear_attention", "full_attention", "moe", "mlp", "mamba", "attention"})) {
    std::size_t mixer = 0;
    while (kMixers.at(mixer).word != word && kMixers.at(mixer).other_word != word) ++mixer;
    mixers.push_back(mixer);
  }
  return mixers;
}

std::vector<std::size_t> pattern_mixers(const ModelConfig& config, std::optional<std::int64_t> layers) {
  std::vector<std::size_t> mixers;
  const std::string pattern = config.text_or(kPattern, "");
  for (const char letter : pattern) {
    std::size_t mixer = 0;
    while (mixer < kMixers.size() && kMixers.at(mixer).letter != letter) ++mixer;
    if (mixer == kMixers.size()) {
      throw InputError(
          fmt::format("{}: field '{}' has '{}' for layer {}, which is none of M (Mamba-2), * (attention), E "
                      "(experts) and - "
                      "(MLP); correct it",
                      config.origin(), kPattern, excerpt(std::string_view(&letter, 1)), mixers.size()));
    }
    mixers.push_back(mixer);
  }
  if (!mixers.empty() && layers && std::ssize(mixers) != *layers) {
    throw InputError(
        fmt::format("{}: field '{}' has {} letters but num_hidden_layers is {}; correct what is wrong",
                    config.origin(), kPattern, mixers.size(), *layers));
  }
  return mixers;
}

/// The mixer of each layer: `layers_block_type`, or the pattern.
std::vector<std::size_t> mixers_of(const ModelConfig& config) {
  // transformers 5 leaves the number out, which its list has.
  const auto layers =
      config.has("num_hidden_layers") ? std::optional(config.integer({"num_hidden_layers"})) : std::nullopt;
  std::vector<std::size_t> listed = listed_mixers(config, layers);
  std::vector<std::size_t> pattern = pattern_mixers(config, layers);
  if (listed.empty() && pattern.empty()) {
    throw InputError(
        fmt::format("{}: fields '{}', which transformers writes, and '{}', which the hub's files have, are "
                    "missing; {} needs one of them",
                    config.origin(), kList, kPattern, config.architecture()));
  }
  if (listed.empty()) return pattern;
  for (std::size_t layer = 0; layer < pattern.size(); ++layer) {
    if (layer < listed.size() && pattern[layer] == listed[layer]) continue;
    throw InputError(fmt::format(
        "{}: layer {} is {} by field '{}', which transformers writes, but {} by '{}', which the hub's files "
        "of {} "
        "have; correct the one that is wrong",
        config.origin(), layer, layer < listed.size() ? kMixers.at(listed[layer]).word : "missing", kList,
        kMixers.at(pattern[layer]).word, kPattern, config.architecture()));
  }
  if (!pattern.empty() && pattern.size() < listed.size()) {
    throw InputError(fmt::format("{}: field '{}' has {} entries but '{}' {} letters; correct what is wrong",
                                 config.origin(), kList, listed.size(), kPattern, pattern.size()));
  }
  return listed;
}

void require_no_biases(const ModelConfig& config) {
  for (const char* bias : {"attention_bias", "mlp_bias", "use_bias", "mamba_proj_bias"}) {
    if (!config.boolean_or({bias}, false)) continue;
    throw InputError(fmt::format(
        "{}: field '{}' is true, but such biases of {} are not known; transformers writes false unless it is "
        "told otherwise",
        config.origin(), bias, config.architecture()));
  }
}

/// The one norm of a layer, which trainers fuse into the linear layer behind it or have alone.
BlockPtr norm(std::int64_t hidden, const char* trainer, std::vector<std::string> other_trainer) {
  return std::make_shared<Replicated>(Names{"norm.weight", "norm.weight", trainer, std::move(other_trainer)},
                                      Shape{hidden});
}

LayerBlocks mamba(SizeFields& sizes, const ModelConfig& config, std::int64_t hidden) {
  Mamba2Sizes mamba;
  mamba.hidden = hidden;
  mamba.heads = sizes.integer({"mamba_num_heads"});
  mamba.head_dim = sizes.integer({"mamba_head_dim"});
  mamba.groups = sizes.integer({"n_groups"});
  mamba.state = sizes.integer({"ssm_state_size"});
  mamba.kernel = sizes.integer({"conv_kernel"});
  mamba.conv_bias = config.boolean_or({"use_conv_bias"}, true);
  if (mamba.heads % mamba.groups != 0) {
    throw InputError(
        fmt::format("{}: mamba_num_heads {} is no multiple of n_groups {}; is it the own config.json of {}?",
                    config.origin(), mamba.heads, mamba.groups, config.architecture()));
  }
  return {norm(hidden, "mixer.in_proj.layer_norm_weight", {"norm.weight"}),
          std::make_shared<Mamba2>(Names{"mixer.", "mixer.", "mixer."}, mamba)};
}

LayerBlocks attention_mixer(SizeFields& sizes, const ModelConfig& config) {
  const AttentionSizes heads = attention_sizes(sizes, config, {.head_dim = 128});
  return {norm(heads.hidden, "self_attention.linear_qkv.layer_norm_weight", {"input_layernorm.weight"}),
          std::make_shared<Attention>(Names{"mixer.", "mixer.", "self_attention."}, heads)};
}

LayerBlocks mlp(SizeFields& sizes, std::int64_t hidden) {
  return {norm(hidden, "mlp.linear_fc1.layer_norm_weight", {"pre_mlp_layernorm.weight"}),
          std::make_shared<PlainMlp>(Names{"mixer.", "mixer.", "mlp."}, hidden,
                                     sizes.integer({"intermediate_size"}))};
}

LayerBlocks experts(SizeFields& sizes, const ModelConfig& config, std::int64_t hidden) {
  PlainExpertSizes routed;
  routed.hidden = sizes.integer_or({"moe_latent_size"}, hidden);
  routed.inner = sizes.integer({"moe_intermediate_size"});
  routed.experts = sizes.integer({"n_routed_experts"});
  const auto whole = [](const std::string& name, const std::string& trainer, Shape shape,
                        Replicated::Type type = Replicated::Type::kModel) {
    const std::string stored = "mixer." + name;
    return std::make_shared<Replicated>(Names{stored, stored, "mlp." + trainer}, shape, type);
  };
  LayerBlocks blocks{
      norm(hidden, "pre_mlp_layernorm.weight", {}),
      whole("gate.weight", "router.weight", {routed.experts, hidden}, Replicated::Type::kWidenedByVllm),
      whole("gate.e_score_correction_bias", "router.expert_bias", {routed.experts},
            Replicated::Type::kFloat32)};
  if (config.has("moe_latent_size")) {
    for (const auto& [name, shape] : {std::pair("fc1_latent_proj.weight", Shape{routed.hidden, hidden}),
                                      std::pair("fc2_latent_proj.weight", Shape{hidden, routed.hidden})}) {
      blocks.push_back(whole(name, name, shape));
    }
  }
  blocks.push_back(
      std::make_shared<PlainExperts>(Names{"mixer.experts", "mixer.experts", "mlp.experts"}, routed));
  const std::int64_t shared =
      config.count_or({"n_shared_experts"}, config.is_null({"n_shared_experts"}) ? 0 : 1);
  if (shared > 1) {
    throw InputError(fmt::format(
        "{}: field 'n_shared_experts' is {}: {} has one MLP of moe_shared_expert_intermediate_size in "
        "transformers, one that is {} times as wide in engines; write 1 and the whole width",
        config.origin(), shared, config.architecture(), shared));
  }
  if (shared == 1) {
    blocks.push_back(std::make_shared<PlainMlp>(
        Names{"mixer.shared_experts.", "mixer.shared_experts.", "mlp.shared_experts."}, hidden,
        sizes.integer({"moe_shared_expert_intermediate_size"}), true));
  }
  return blocks;
}

}  // namespace

/// Nemotron-H and Nemotron-3: each layer is one mixer behind one norm, Mamba-2, attention, an MLP without a
/// gate or experts without gates.
std::unique_ptr<Family> make_nemotron_h(const ModelConfig& config) {
  SizeFields sizes(config);
  const std::vector<std::size_t> mixers = mixers_of(config);
  require_no_biases(config);
  const std::int64_t hidden = sizes.integer({"hidden_size"});
  Ends ends;
  ends.embedding.canonical = "backbone.embeddings.weight";
  ends.final_norm = {"backbone.norm_f.weight",
                     "model.norm_f.weight",
                     "decoder.final_norm.weight",
                     {"decoder.final_layernorm.weight"}};
  ends.layers = std::ssize(mixers);
  DecoderParts parts = common_parts(sizes, config, hidden, ends);
  require_no_codes(parts, config);
  parts.layers_prefix = "backbone.layers.";
  parts.left_out = {"mtp."};
  add_layers(
      parts, [mixers](std::int64_t layer) { return mixers[static_cast<std::size_t>(layer)]; },
      [&](std::size_t mixer) {
        switch (mixer) {
          case kMamba:
            return mamba(sizes, config, hidden);
          case kAttention:
            return attention_mixer(sizes, config);
          case kExperts:
            return experts(sizes, config, hidden);
          default:
            return mlp(sizes, hidden);
        }
      });
  return decoder(std::move(parts), sizes);
}

}  // namespace weightcast
