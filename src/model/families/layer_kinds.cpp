#include "model/families/layer_kinds.hpp"

#include <fmt/format.h>

#include <array>
#include <optional>
#include <unordered_set>
#include <vector>

#include "core/error.hpp"

namespace weightcast {

std::function<bool(std::int64_t)> dense_by_step(const ModelConfig& config) {
  const std::int64_t step = config.integer_or({"decoder_sparse_step"}, 1);
  const std::vector<std::int64_t> listed = config.integers_or_empty({"mlp_only_layers"});
  const std::unordered_set<std::int64_t> dense_layers(listed.begin(), listed.end());
  return [step, dense_layers](std::int64_t layer) {
    return (layer + 1) % step != 0 || dense_layers.contains(layer);
  };
}

std::function<bool(std::int64_t)> dense_at_first(const ModelConfig& config, std::int64_t layers,
                                                 std::int64_t fallback) {
  const std::int64_t first = config.count_or({"first_k_dense_replace"}, fallback);
  const std::int64_t step = config.integer_or({"moe_layer_freq"}, 1);
  const auto by_count = [first, step](std::int64_t layer) { return layer < first || layer % step != 0; };
  const auto types = config.layer_words_or_empty("mlp_layer_types", layers, {"dense", "sparse"});
  if (types.empty()) return by_count;
  const auto by_list = [types](std::int64_t layer) {
    return types[static_cast<std::size_t>(layer)] == "dense";
  };
  if (!config.has("first_k_dense_replace")) return by_list;
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    if (by_list(layer) == by_count(layer)) continue;
    throw InputError(fmt::format(
        "{}: layer {} is {} by field 'mlp_layer_types' but not by 'first_k_dense_replace'; correct "
        "the one that is wrong",
        config.origin(), layer, types[static_cast<std::size_t>(layer)]));
  }
  return by_list;
}

void add_layers(DecoderParts& parts, const std::function<std::size_t(std::int64_t)>& kind,
                const std::function<LayerBlocks(std::size_t)>& make) {
  constexpr std::size_t kMostKinds = 8;
  std::array<std::optional<std::size_t>, kMostKinds> number;
  for (std::int64_t layer = 0; layer < parts.layers; ++layer) {
    std::optional<std::size_t>& known = number.at(kind(layer));
    if (known) continue;
    known = parts.kinds.size();
    parts.kinds.push_back(make(kind(layer)));
  }
  parts.kind_of = [kind, number](std::int64_t layer) { return number.at(kind(layer)).value(); };
}

void mix_layers(DecoderParts& parts, const LayerBlocks& sparse,
                const std::function<bool(std::int64_t)>& is_dense,
                const std::function<LayerBlocks()>& dense) {
  add_layers(
      parts, [is_dense](std::int64_t layer) -> std::size_t { return is_dense(layer) ? 1 : 0; },
      [&](std::size_t kind) { return kind == 0 ? sparse : dense(); });
}

}  // namespace weightcast
