#include "launch/layout_text.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

#include "core/units.hpp"

namespace weightcast {

namespace {

/// `layers 0..11 | 12..23`; several ranges a stage where it has several chunks.
std::string explain_stages(const TrainerLayout& layout, std::int64_t layers) {
  std::vector<std::string> stages;
  constexpr std::int64_t kMost = 16;
  for (std::int64_t stage = 0; stage < std::min(layout.pp, kMost); ++stage) {
    std::vector<std::string> chunks;
    for (const TrainerChunk& chunk : trainer_chunks(layout, stage, layers)) {
      chunks.push_back(
          chunk.layers == 0 ? "none" : fmt::format("{}..{}", chunk.first, chunk.first + chunk.layers - 1));
    }
    stages.push_back(fmt::format("{}", fmt::join(chunks, " + ")));
  }
  return fmt::format("{}{}", fmt::join(stages, " | "), layout.pp > kMost ? " | …" : "");
}

}  // namespace

std::string explain(const Topology& topology, std::int64_t layers) {
  const EngineLayout& engine = topology.engine;
  std::string text;
  if (topology.trainer_layout) {
    const TrainerLayout& t = *topology.trainer_layout;
    text += fmt::format(
        "# trainers   {} ranks: {} stages × dp {} × cp {} × tp {};\n"
        "#            experts: edp {} × ep {} × etp {}; ranks count {}\n",
        t.ranks(), t.pp, t.dp, t.cp, t.tp, t.edp, t.ep, t.etp,
        t.order == TrainerOrder::kTpDpPp ? "tp, cp, dp, pp" : "tp, cp, pp, dp");
    text += fmt::format("# stages     layers {}\n", explain_stages(t, layers));
  } else {
    text += fmt::format("# trainers   {}, each of which {}\n", counted(topology.trainers, "rank"),
                        topology.holdings.empty() ? "may send anything" : "sends of what it has published");
  }
  text += fmt::format("# inference  {}: {} × pp {} × {}{}{}\n", counted(engine.ranks(), "rank"),
                      counted(engine.replicas, "replica"), engine.pp, engine.cut_text(),
                      engine.canonical()       ? "; tensors whole, by Hugging Face name"
                      : engine.landing.empty() ? fmt::format("; names of {}", engine_name(engine.engine))
                                               : fmt::format("\n#            names of {}, as landing map {}",
                                                             engine_name(engine.engine), engine.landing),
                      topology.colocate ? "; the same ranks as the trainers" : "");
  return text;
}

std::string role_of(const Topology& topology, std::int64_t rank) {
  std::string role;
  if (topology.trainer(rank)) {
    role = "trainer";
    if (topology.trainer_layout) {
      role += fmt::format(" ({})", to_string(trainer_rank(*topology.trainer_layout, rank)));
    }
  }
  if (const auto inference = topology.inference_rank(rank)) {
    const EngineRank place = engine_rank(topology.engine, *inference);
    role += fmt::format("{}inference {} ({})", role.empty() ? "" : " + ", *inference,
                        place_text(topology.engine, place));
  }
  return role;
}

}  // namespace weightcast
