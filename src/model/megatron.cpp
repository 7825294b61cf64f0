#include "model/megatron.hpp"

#include <algorithm>
#include <array>

#include "core/units.hpp"
#include "model/beside_weights.hpp"
#include "model/stored_names.hpp"

namespace weightcast {

std::int64_t megatron_padded_vocabulary(std::int64_t vocabulary, std::int64_t tp) {
  constexpr std::int64_t kUnit = 128;
  return round_up(vocabulary, kUnit * tp);
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
  return is_state_beside_weights(unwrapped) || is_rotary_table(unwrapped) || is_cache_scale(unwrapped);
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
  static constexpr std::array<Form, 4> kForms{{
      {".mlp.experts.weight1", "experts of the legacy grouped MLP are not read; save them one by one"},
      {".mlp.experts.weight2", "experts of the legacy grouped MLP are not read; save them one by one"},
      {".linear_qkv_down_proj.", "a fused down projection of q and kv is not read; save both projections"},
      {".mlp.router.expert_bias",
       "the model of this config.json has no expert bias; name the config.json of the model that was "
       "trained"},
  }};
  const auto* const found = std::find_if(kForms.begin(), kForms.end(), [&](const Form& form) {
    return unwrapped.find(form.part) != std::string_view::npos;
  });
  if (found != kForms.end()) return found->why;
  const std::string state = training_state(unwrapped);
  return state.empty() ? "" : "it " + state + "; write the weights alone";
}

}  // namespace weightcast
