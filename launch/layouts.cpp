#include "launch/layouts.hpp"

#include <fmt/format.h>

#include "core/error.hpp"
#include "model/allocation.hpp"
#include "model/layouts/moe_layout.hpp"

namespace weightcast {

namespace {

void set_details(const Options& options, TrainerLayout& layout) {
  layout.order = options.trainer_order == "tp-pp-dp" ? TrainerOrder::kTpPpDp : TrainerOrder::kTpDpPp;
  layout.global_numbers = options.trainer_names == "global";
  layout.whole_linear_attention = options.trainer_linear_attention == "whole";
  layout.plain_linear_norm = options.trainer_linear_attention == "cut-plain";
  layout.stage_layers = options.stage_layers;
}

/// Throws UsageError where the allocation names another engine.
void set_engine(const Options& options, EngineLayout& layout) {
  if (options.engine.empty()) return;
  const bool allocated = options.alloc || options.inference_alloc;
  if (allocated && engine_name(layout.engine) != options.engine) {
    throw UsageError(fmt::format("--engine {}: {} says {}; leave one of them out", options.engine,
                                 layout.option, engine_name(layout.engine)));
  }
  layout.engine = find_engine(options.engine).value_or(layout.engine);
}

/// Throws UsageError where the map is of an engine of another layout.
void set_landing(const LandingMap& landing, EngineLayout& layout) {
  require_layout(landing, layout);
  layout.landing = landing.hash;
  layout.stage_layers = landing.stage_layers;
}

}  // namespace

std::optional<TrainerLayout> trainer_layout_of(const Options& options) {
  std::optional<TrainerLayout> layout;
  if (options.alloc) {
    layout = parse_allocation(options.alloc->option, options.alloc->text).trainers;
  } else if (options.trainer_alloc) {
    layout = parse_trainer_allocation(options.trainer_alloc->option, options.trainer_alloc->text);
  }
  if (layout) set_details(options, *layout);
  return layout;
}

Topology topology_of(const Options& options, const LandingMap* landing) {
  Topology topology;
  if (options.alloc) {
    topology.engine = parse_allocation(options.alloc->option, options.alloc->text).inference;
  } else if (options.inference_alloc) {
    topology.engine =
        parse_inference_allocation(options.inference_alloc->option, options.inference_alloc->text);
  } else if (!options.inference && landing != nullptr) {
    topology.engine = layout_of(*landing);
  } else {
    topology.engine = parse_engine_layout(options.inference.value_or("tp=1"), options.moe_layout);
    if (landing != nullptr) topology.engine.engine = landing->engine;
  }
  set_engine(options, topology.engine);
  if (landing != nullptr) set_landing(*landing, topology.engine);
  topology.engine.moe_layout = find_moe_layout(options.moe_layout).name();
  if (landing == nullptr) topology.engine.stage_layers = options.inference_stage_layers;
  topology.engine.activations = parse_activation_scales(options.activation_scales);
  if (!options.quantize.empty()) topology.engine.quantizer = parse_quantizer(options.quantize);
  const auto& quantizer = topology.engine.quantizer;
  const bool has_factors = quantizer && has_global(quantizer->scheme) &&
                           find_moe_layout(options.moe_layout).matrices(quantizer).scalars.gate != nullptr;
  if (topology.engine.activations != ActivationScales() && !has_factors) {
    throw UsageError(
        "--activation-scales: only --moe-layout trtllm with --quantize nvfp4 or fp8-tensor keeps what "
        "follows from them; "
        "leave the option out");
  }
  const bool as_options_say = find_moe_layout(options.moe_layout).name() == EngineLayout().moe_layout &&
                              !topology.engine.quantizer && topology.engine.stage_layers.empty();
  if (topology.engine.canonical() && !as_options_say) {
    throw UsageError(
        topology.engine.option +
        ": hf is the model as it is; leave --moe-layout, --quantize and --inference-stage-layers out");
  }
  topology.trainer_layout = trainer_layout_of(options);
  topology.colocate = options.colocate;
  topology.trainers = topology.trainer_layout ? topology.trainer_layout->ranks()
                      : options.colocate      ? topology.engine.ranks()
                                              : options.trainers;
  if (options.colocate && topology.trainers != topology.engine.ranks()) {
    throw UsageError(fmt::format(
        "--colocate: {} gives {} trainers and {} {} inference ranks; every rank is both, so "
        "they must be equal",
        topology.trainer_layout->option, topology.trainers, topology.engine.option, topology.engine.ranks()));
  }
  topology.source_split = options.source_split == "expert" ? SourceSplit::kExpert
                          : options.source_split == "row"  ? SourceSplit::kRow
                                                           : SourceSplit::kCatalog;
  return topology;
}

Limits limits_of(const Options& options) {
  return {options.bucket_size, options.buffers, options.fan_out == "all" ? FanOut::kAll : FanOut::kNeeded,
          options.quantize_at == "source" ? QuantizeAt::kSource : QuantizeAt::kDestination};
}

}  // namespace weightcast
