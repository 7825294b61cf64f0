#include "model/stored_names.hpp"

#include <algorithm>
#include <array>

namespace weightcast {

namespace {

constexpr std::array<std::string_view, 6> kWrapperModules{"_orig_mod",       "module",
                                                          "_fpw_module",     "_fsdp_wrapped_module",
                                                          "_forward_module", "_checkpoint_wrapped_module"};

/// The text behind `prefix`, or the text itself when it begins otherwise.
std::string_view behind(std::string_view text, std::string_view prefix) {
  return text.starts_with(prefix) ? text.substr(prefix.size()) : text;
}

}  // namespace

std::string without_wrappers(std::string_view stored) {
  std::string name;
  for (std::size_t start = 0; start < stored.size();) {
    const std::size_t dot = stored.find('.', start);
    const std::size_t end = dot == std::string_view::npos ? stored.size() : dot;
    const std::string_view part = stored.substr(start, end - start);
    start = end + 1;
    // The last part is the tensor's own name.
    const bool last = dot == std::string_view::npos;
    if (!last && std::ranges::find(kWrapperModules, part) != kWrapperModules.end()) continue;
    name += part;
    if (!last) name += '.';
  }
  return name;
}

std::string canonical_name(std::string_view stored) {
  constexpr std::string_view kBody = "model.";
  constexpr std::string_view kLanguage = "language_model.";
  // transformers 5 writes Kimi-K2.5's text layers so: its names for the vision tower's meet them, too.
  constexpr std::string_view kBlocks = "language_model.model.blocks.";
  std::string plain = without_wrappers(stored);
  if (plain.starts_with(kBlocks)) plain = std::string("model.layers.").append(behind(plain, kBlocks));
  std::string_view name = behind(plain, kLanguage);
  if (name.starts_with(kBody)) {
    const std::string_view inner = behind(name.substr(kBody.size()), kLanguage);
    // A module that holds the model as its own `model` puts a second one in front; the head is not in the
    // body.
    if (inner.starts_with(kBody) || inner.starts_with("lm_head.")) return std::string(inner);
    return std::string(kBody).append(inner);
  }
  for (const std::string_view part : {"layers.", "embed_tokens.", "norm.", "rotary_emb."}) {
    if (name.starts_with(part)) return std::string(kBody).append(name);
  }
  return std::string(name);
}

std::string adapter_part(std::string_view stored) {
  constexpr std::array<std::string_view, 7> kParts{
      "lora_A",     "lora_B",         "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector",
      "base_layer", "modules_to_save"};
  const std::string plain = without_wrappers(stored);
  const auto has_part = [&](std::string_view part) {
    const std::size_t at = plain.find(std::string(".").append(part));
    if (at == std::string::npos) return false;
    const std::size_t end = at + 1 + part.size();
    return end == plain.size() || plain[end] == '.';
  };
  if (std::ranges::any_of(kParts, has_part)) {
    return "belongs to an adapter (PEFT, LoRA) that was not merged into its model; merge it with "
           "merge_and_unload() and save the whole model";
  }
  if (plain.starts_with("base_model.model.")) {
    return "is called as in a model with an adapter (PEFT, LoRA) around it, and nothing says whether that "
           "was "
           "merged; merge it with merge_and_unload() and save the whole model";
  }
  return "";
}

}  // namespace weightcast
