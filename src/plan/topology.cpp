#include "plan/topology.hpp"

#include <fmt/format.h>

#include "core/error.hpp"

namespace weightcast {

std::optional<std::int64_t> Topology::trainer(std::int64_t rank) const {
  if (rank >= trainers) return std::nullopt;
  return rank;
}

std::optional<std::int64_t> Topology::inference_rank(std::int64_t rank) const {
  if (colocate) return rank;
  if (rank < trainers) return std::nullopt;
  return rank - trainers;
}

std::int64_t Topology::world_rank_of_inference(std::int64_t inference_rank) const {
  return colocate ? inference_rank : trainers + inference_rank;
}

void require_world_size(const Topology& topology, std::int64_t world_size) {
  if (topology.ranks() == world_size) return;
  const EngineLayout& engine = topology.engine;
  const std::string trainers = topology.colocate ? "" : fmt::format("{} trainers + ", topology.trainers);
  const std::string options = topology.trainer_layout ? topology.trainer_layout->option : "--trainers";
  const std::string stage =
      engine.attention_dp == 1
          ? fmt::format("tp {}", engine.tp)
          : fmt::format("attn_tp {} × attn_dp {}", engine.attention_tp(), engine.attention_dp);
  throw UsageError(
      fmt::format("too {} ranks: {}{} replicas × pp {} × {} need {} ranks, the launcher started {}; start "
                  "{} or change "
                  "{}",
                  world_size < topology.ranks() ? "few" : "many", trainers, engine.replicas, engine.pp, stage,
                  topology.ranks(), world_size, topology.ranks(),
                  options == engine.option ? options : fmt::format("{} or {}", options, engine.option)));
}

}  // namespace weightcast
