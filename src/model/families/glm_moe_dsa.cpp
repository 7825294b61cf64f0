#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "model/families/deepseek.hpp"
#include "model/families/families.hpp"

namespace weightcast {

namespace {

/// `indexer_types` as transformers writes it, the pattern `FFSF` or the step of the hub's configs.
std::function<bool(std::int64_t)> own_indexers(const ModelConfig& config) {
  const std::int64_t layers = config.integer({"num_hidden_layers"});
  const auto types = config.layer_words_or_empty("indexer_types", layers, {"full", "shared"});
  if (!types.empty()) {
    return [types](std::int64_t layer) { return types[static_cast<std::size_t>(layer)] == "full"; };
  }
  const std::string pattern = config.text_or("index_topk_pattern", "");
  if (!pattern.empty()) {
    if (std::ssize(pattern) != layers || pattern.find_first_not_of("FS") != std::string::npos) {
      throw InputError(
          fmt::format("{}: field 'index_topk_pattern' has not one F or S for each of {} layers; "
                      "correct it",
                      config.origin(), layers));
    }
    return [pattern](std::int64_t layer) { return pattern[static_cast<std::size_t>(layer)] == 'F'; };
  }
  const std::int64_t step = config.integer_or({"index_topk_freq"}, 1);
  const std::int64_t offset = config.count_or({"index_skip_topk_offset"}, 2);
  return [=](std::int64_t layer) { return std::max<std::int64_t>(layer - offset + 1, 0) % step == 0; };
}

}  // namespace

/// GLM-5: DeepSeek-V3.2 with layers that use another one's indexer.
std::unique_ptr<Family> make_glm_moe_dsa(const ModelConfig& config) {
  return make_deepseek(config, {.own_indexer = own_indexers(config)});
}

}  // namespace weightcast
