#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "plan/plan.hpp"
#include "plan/steps.hpp"

namespace weightcast {

nlohmann::ordered_json plan_json(const Plan& plan, const Catalog& catalog, bool segments) {
  using nlohmann::ordered_json;
  const EngineLayout& engine = plan.topology.engine;
  ordered_json root;
  root["weightcast"] = "plan";
  root["hash"] = fmt::format("{:016x}", plan.hash);
  root["trainers"] = plan.topology.trainers;
  if (plan.topology.trainer_layout) root["trainer_layout"] = plan.topology.trainer_layout->to_string();
  root["colocate"] = plan.topology.colocate;
  root["inference"] = {{"engine", engine_name(engine.engine)},
                       {"tp", engine.tp},
                       {"ep", engine.ep},
                       {"pp", engine.pp},
                       {"replicas", engine.replicas},
                       {"moe_layout", engine.moe_layout},
                       {"expert_epoch", engine.experts.epoch},
                       {"expert_placement", engine.experts.fingerprint()}};
  if (engine.attention_dp > 1) {
    root["inference"]["attn_tp"] = engine.attention_tp();
    root["inference"]["attn_dp"] = engine.attention_dp;
  }
  if (!engine.stage_layers.empty()) root["inference"]["stage_layers"] = engine.stage_layers;
  if (!engine.landing.empty()) root["inference"]["landing"] = engine.landing;
  if (engine.quantizer) {
    root["quantize"] = quantizer_name(*engine.quantizer);
    root["quantize_at"] = plan.limits.quantize_at == QuantizeAt::kSource ? "source" : "destination";
  }
  root["fan_out"] = plan.limits.fan_out == FanOut::kAll ? "all" : "needed";
  root["model"] = {{"tensors", catalog.size()}, {"bytes", catalog.bytes()}};
  root["wire_bytes"] = plan.wire_bytes();
  root["bucket_bytes"] = plan.limits.bucket_bytes;
  root["staging_bytes_per_rank"] = plan.staging_bytes_per_rank();
  root["routes"] = plan.routes();
  root["destinations"] = plan.destinations;
  const StepCounts steps = count_steps(plan);
  root["steps"] = {{"count", steps.steps}, {"least", steps.least}, {"with_idle_link", steps.with_idle_link}};
  auto& ranks = root["ranks"] = ordered_json::array();
  const std::vector<Traffic> traffic = plan.traffic();
  for (std::size_t rank = 0; rank < traffic.size(); ++rank) {
    ranks.push_back({{"rank", rank},
                     {"sent", traffic[rank].sent},
                     {"received", traffic[rank].received},
                     {"buckets", traffic[rank].buckets}});
  }
  auto& buckets = root["buckets"] = ordered_json::array();
  for (const Bucket& bucket : plan.buckets) {
    ordered_json entry = {{"root", bucket.root},
                          {"destinations", bucket.destinations},
                          {"bytes", bucket.bytes},
                          {"segments", bucket.segments}};
    if (segments) {
      auto& list = entry["segments"] = ordered_json::array();
      for (std::uint32_t i = 0; i < bucket.segments; ++i) {
        const Segment& segment = plan.segments[bucket.first_segment + i];
        const Box& box = segment.box;
        list.push_back({{"tensor", catalog[segment.tensor].name},
                        {"rows", {box.row, box.row + box.rows}},
                        {"columns", {box.col, box.col + box.cols}},
                        {"offset", segment.offset}});
      }
    }
    buckets.push_back(std::move(entry));
  }
  return root;
}

}  // namespace weightcast
