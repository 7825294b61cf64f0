#include "model/megatron.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "core/error.hpp"
#include "core/units.hpp"
#include "model/beside_weights.hpp"
#include "model/stored_names.hpp"

namespace weightcast {

MegatronParallel::MegatronParallel(const Catalog& catalog, std::int64_t size, std::int64_t rank,
                                   const std::string& option, const std::string& size_name)
    : cut_(catalog, size, rank, option, size_name) {}

std::int64_t MegatronParallel::default_vocabulary(std::int64_t vocabulary, std::int64_t tp) {
  constexpr std::int64_t kUnit = 128;
  return round_up(vocabulary, kUnit * tp);
}

TrainerTensor MegatronParallel::replicated(const std::string& name, const std::string& tensor,
                                           std::vector<std::string> other_names) const {
  TrainerTensor result{cut_.replicated(tensor), std::move(other_names), false};
  result.held.name = name;
  return result;
}

TrainerTensor MegatronParallel::row_parallel(const std::string& name, const std::string& tensor) const {
  TrainerTensor result{cut_.row_parallel(tensor), {}, false};
  result.held.name = name;
  return result;
}

TrainerTensor MegatronParallel::vocabulary(const std::string& name, const std::string& tensor,
                                           std::int64_t padded) const {
  const std::int64_t rows = cut_.catalog()[cut_.catalog().at(tensor)].shape.rows();
  if (padded < rows) {
    throw InputError(
        fmt::format("{}: the trainers' {} has {} rows on all tensor-parallel ranks together but {} has {}; "
                    "were the shards written for this layout and model?",
                    cut_.option(), name, padded, tensor, rows));
  }
  TrainerTensor result{cut_.vocabulary(tensor, padded), {}, false};
  result.held.name = name;
  return result;
}

void MegatronParallel::add_attention(const std::string& at, const std::string& from,
                                     const Attention& attention, std::vector<TrainerTensor>& tensors) const {
  // The norm is fused into linear_qkv, or stands alone before the attention.
  std::string plain = at.substr(0, at.size() - std::string_view("self_attention.").size());
  plain += "input_layernorm.weight";
  tensors.push_back(replicated(at + "linear_qkv.layer_norm_weight", from + "input_layernorm.weight",
                               {plain, at + "input_layernorm.weight"}));
  const std::string projection = from + "self_attn.";
  const auto add_qkv = [&](const std::string& kind) {
    tensors.push_back({cut_.interleaved_qkv(at + "linear_qkv" + kind, projection + "q_proj" + kind,
                                            projection + "k_proj" + kind, projection + "v_proj" + kind,
                                            attention.heads, attention.kv_heads, attention.head_dim),
                       {},
                       false});
  };
  add_qkv(".weight");
  tensors.push_back(row_parallel(at + "linear_proj.weight", projection + "o_proj.weight"));
  if (!attention.bias) return;
  add_qkv(".bias");
  tensors.push_back(replicated(at + "linear_proj.bias", projection + "o_proj.bias"));
}

void MegatronParallel::add_mlp(const std::string& at, const std::string& from,
                               std::vector<TrainerTensor>& tensors) const {
  tensors.push_back(
      {cut_.gate_up(at + "linear_fc1.weight", from + "gate_proj.weight", from + "up_proj.weight"),
       {},
       false});
  tensors.push_back(row_parallel(at + "linear_fc2.weight", from + "down_proj.weight"));
}

void MegatronParallel::add_expert(const std::string& at, std::int64_t number, const std::string& from,
                                  std::vector<TrainerTensor>& tensors) const {
  const std::size_t first = tensors.size();
  add_mlp(at, from, tensors);
  // As grouped and as sequential experts are called.
  for (std::size_t i = first; i < tensors.size(); ++i) {
    const std::string matrix = tensors[i].held.name.substr(at.size());
    tensors[i].held.name += std::to_string(number);
    tensors[i].other_names.push_back(fmt::format("{}local_experts.{}.{}", at, number, matrix));
  }
}

UnwrappedName unwrap_name(std::string_view stored) {
  constexpr std::string_view kChunk = "vp_stages.";
  constexpr std::string_view kLanguage = "language_model.";
  const std::string plain = without_wrappers(stored);
  std::string_view name = plain;
  UnwrappedName result;
  for (bool stripped = true; stripped;) {
    stripped = name.starts_with(kLanguage);
    if (stripped) name.remove_prefix(kLanguage.size());
    const std::size_t dot = name.starts_with(kChunk) ? name.find('.', kChunk.size()) : std::string_view::npos;
    if (dot != std::string_view::npos && result.chunk.empty()) {
      result.chunk = name.substr(0, dot + 1);
      name.remove_prefix(dot + 1);
      stripped = true;
    }
  }
  result.name = name;
  return result;
}

bool trainer_may_ignore(std::string_view unwrapped) {
  return unwrapped.ends_with("._extra_state") || unwrapped.find("._extra_state/") != std::string_view::npos ||
         is_rotary_table(unwrapped);
}

std::string trainer_refusal(std::string_view unwrapped) {
  struct Form {
    std::string_view part;
    const char* why;
  };
  static constexpr const char* kGrouped = "experts in one grouped tensor are not read; save them one by one";
  if (unwrapped.ends_with(".mlp.experts.linear_fc1.weight") ||
      unwrapped.ends_with(".mlp.experts.linear_fc2.weight")) {
    return kGrouped;
  }
  static constexpr std::array<Form, 6> kForms{{
      {".mlp.experts.weight1", "experts of the legacy grouped MLP are not read; save them one by one"},
      {".mlp.experts.weight2", "experts of the legacy grouped MLP are not read; save them one by one"},
      {".linear_qkv_down_proj.", "a fused down projection of q and kv is not read; save both projections"},
      {".self_attention.in_proj.", "natively sharded linear attention is not read"},
      {".self_attention.conv1d.", "natively sharded linear attention is not read"},
      {".mlp.router.expert_bias",
       "the model of this config.json has no expert bias; name the config.json of the model that was "
       "trained"},
  }};
  const auto* const found = std::find_if(kForms.begin(), kForms.end(), [&](const Form& form) {
    return unwrapped.find(form.part) != std::string_view::npos;
  });
  return found == kForms.end() ? "" : found->why;
}

}  // namespace weightcast
