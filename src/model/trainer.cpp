#include "model/trainer.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "core/error.hpp"

namespace weightcast {

namespace {

/// Layers of every chunk, chunk-major.
std::vector<std::int64_t> layers_of_chunks(const TrainerLayout& layout, std::int64_t layers) {
  if (layout.stage_layers.empty()) {
    if (layers % layout.pp == 0) {
      std::vector<std::int64_t> even(static_cast<std::size_t>(layout.pp), layers / layout.pp);
      return even;
    }
    throw UsageError(
        fmt::format("{}: {} layers cannot be cut evenly into p={} stages; give the layers of each with "
                    "--stage-layers",
                    layout.option, layers, layout.pp));
  }
  const std::vector<std::int64_t>& given = layout.stage_layers;
  const std::int64_t sum = std::accumulate(given.begin(), given.end(), std::int64_t{0});
  if (static_cast<std::int64_t>(given.size()) % layout.pp != 0) {
    throw UsageError(
        fmt::format("--stage-layers {}: {} entries for p={} stages; give one for each stage, or as many for "
                    "each as it has chunks",
                    fmt::join(given, ","), given.size(), layout.pp));
  }
  if (sum != layers) {
    throw UsageError(fmt::format("--stage-layers {}: the stages add up to {} layers but the model has {}",
                                 fmt::join(given, ","), sum, layers));
  }
  return given;
}

}  // namespace

std::string TrainerLayout::to_string() const {
  std::string text =
      fmt::format("megatron:(attn:d{}p{}t{}c{}|ffn:d{}p{}t{}e{})", dp, pp, tp, cp, edp, pp, etp, ep);
  if (order == TrainerOrder::kTpPpDp) text += " order tp-pp-dp";
  if (!stage_layers.empty()) text += fmt::format(" layers {}", fmt::join(stage_layers, ","));
  return text;
}

TrainerRank trainer_rank(const TrainerLayout& layout, std::int64_t rank) {
  TrainerRank place;
  const std::int64_t in_stage = layout.ranks() / layout.pp;
  std::int64_t dense = 0;  // rank among those of the stage
  if (layout.order == TrainerOrder::kTpDpPp) {
    place.pp = rank / in_stage;
    dense = rank % in_stage;
  } else {
    const std::int64_t inner = layout.tp * layout.cp;
    place.pp = rank / inner % layout.pp;
    dense = rank / (inner * layout.pp) * inner + rank % inner;
  }
  place.tp = dense % layout.tp;
  place.cp = dense / layout.tp % layout.cp;
  place.dp = dense / (layout.tp * layout.cp);
  // Both orders of a stage's ranks agree: require_one_stage sees to it.
  place.etp = dense % layout.etp;
  place.ep = dense / layout.etp % layout.ep;
  place.edp = dense / (layout.etp * layout.ep);
  return place;
}

std::string TrainerChunk::layer_prefix(const TrainerLayout& layout, std::int64_t layer) const {
  return fmt::format("{}decoder.layers.{}.", prefix, layout.global_numbers ? layer : layer - first);
}

std::vector<TrainerChunk> trainer_chunks(const TrainerLayout& layout, std::int64_t stage,
                                         std::int64_t layers) {
  const std::vector<std::int64_t> counts = layers_of_chunks(layout, layers);
  const auto stages = static_cast<std::size_t>(layout.pp);
  const std::size_t chunks = counts.size() / stages;
  std::vector<TrainerChunk> mine;
  std::int64_t first = 0;
  for (std::size_t i = 0; i < counts.size(); first += counts[i++]) {
    if (static_cast<std::int64_t>(i % stages) != stage) continue;
    TrainerChunk chunk;
    if (chunks > 1 && !layout.global_numbers) chunk.prefix = fmt::format("vp_stages.{}.", i / stages);
    chunk.first = first;
    chunk.layers = counts[i];
    chunk.embedding = i == 0;
    chunk.head = i + 1 == counts.size();
    chunk.final_norm = counts[i] > 0 && first + counts[i] == layers;
    mine.push_back(chunk);
  }
  return mine;
}

}  // namespace weightcast
