#include "model/blocks/expert_names.hpp"

#include <fmt/format.h>

#include "core/error.hpp"

namespace weightcast {

namespace {

/// Throws UsageError for a MoE layout other than `triton` and for a quantiser: `experts` are `unlike` those
/// that are laid out and quantised.
void require_triton(const EngineLayout& layout, const std::string& experts, const char* unlike) {
  if (layout.moe_layout != EngineLayout().moe_layout) {
    throw UsageError(
        fmt::format("--moe-layout {}: {} {}, which is put into layout {} alone; leave the option out",
                    layout.moe_layout, experts, unlike, EngineLayout().moe_layout));
  }
  if (layout.quantizer) {
    throw UsageError(
        fmt::format("--quantize: {} {}, and are not quantised; leave the option out", experts, unlike));
  }
}

}  // namespace

const char* experts_module(Engine engine) {
  return engine == Engine::kVllm ? ".routed_experts" : "";
}

std::string expert_weight(const std::string& experts, std::int64_t expert, const char* matrix) {
  return fmt::format("{}.{}.{}.weight", experts, expert, matrix);
}

HeldExperts held_experts(const Site& site, const Names& names, const EngineCut& cut, std::int64_t experts,
                         std::int64_t inner, const char* unlike) {
  const EngineLayout& layout = cut.layout;
  const std::string from = site.canonical + names.canonical;
  require_triton(layout, from, unlike);
  require_divides(layout.option, layout.expert_tp_name(), layout.expert_tp(), "the inner size of " + from,
                  inner);
  HeldExperts held;
  held.numbers = layout.experts.experts_on(site.layer, layout.ep, cut.rank.ep, experts, layout.option);
  held.inner = inner / layout.expert_tp();
  held.start = cut.rank.expert_tp * held.inner;
  held.module = site.engine + names.engine + experts_module(layout.engine);
  return held;
}

std::string TrainerExpert::grouped(const char* matrix, const char* kind) const {
  return fmt::format("{}.{}.{}{}", experts, matrix, kind, number_there);
}

std::string TrainerExpert::alone(const char* matrix, const char* kind) const {
  return fmt::format("{}.local_experts.{}.{}.{}", experts, number_there, matrix, kind);
}

void for_each_trainer_expert(const TrainerExpertCut& cut, const std::string& from, const std::string& at,
                             std::int64_t experts, const std::function<void(const TrainerExpert&)>& each) {
  require_divides(cut.inner.option(), "the trainers' e", cut.ep, "the experts of " + from, experts);
  const std::int64_t count = experts / cut.ep;
  for (std::int64_t expert = cut.ep_rank * count; expert < (cut.ep_rank + 1) * count; ++expert) {
    each({expert, at, cut.global_numbers ? expert : expert - cut.ep_rank * count});
  }
}

}  // namespace weightcast
