#include "model/trainer.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
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
  const auto entries = static_cast<std::int64_t>(given.size());
  if (layout.pp == 1 && entries > 1) {
    throw UsageError(fmt::format("--stage-layers {}: {} has one stage; give its stages with p",
                                 fmt::join(given, ","), layout.option));
  }
  if (entries % layout.pp != 0) {
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
  if (order == TrainerOrder::kTpPpDp && pp > 1 && dp > 1) text += " --trainer-order tp-pp-dp";
  const bool even = static_cast<std::int64_t>(stage_layers.size()) <= pp &&
                    std::adjacent_find(stage_layers.begin(), stage_layers.end(), std::not_equal_to<>()) ==
                        stage_layers.end();
  if (!even) text += fmt::format(" --stage-layers {}", fmt::join(stage_layers, ","));
  return text;
}

std::string to_string(const TrainerRank& place) {
  return fmt::format("pp {} dp {} cp {} tp {}, experts ep {} etp {}", place.pp, place.dp, place.cp, place.tp,
                     place.ep, place.etp);
}

void require_one_stage(const TrainerLayout& layout) {
  if (layout.order == TrainerOrder::kTpDpPp || layout.pp == 1) return;
  if (layout.tp * layout.cp == layout.etp * layout.ep) return;
  throw UsageError(
      fmt::format("--trainer-order tp-pp-dp: attn t·c = {} and ffn t·e = {} would put a rank into two "
                  "stages; with several "
                  "stages they must be equal, for example megatron:(attn:d{}p{}t{}c{}|ffn:t{})",
                  layout.tp * layout.cp, layout.etp * layout.ep, layout.dp, layout.pp, layout.tp, layout.cp,
                  layout.tp * layout.cp));
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
