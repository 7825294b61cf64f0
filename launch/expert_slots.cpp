#include "launch/expert_slots.hpp"

#include <fmt/format.h>

#include "core/error.hpp"
#include "core/units.hpp"
#include "model/fitted_placement.hpp"
#include "model/map_fields.hpp"
#include "storage/foreign_file.hpp"

namespace weightcast {

namespace {

std::string read_map(const std::string& path) {
  try {
    return read_json_file(path, kMostMapBytes);
  } catch (const IoError& error) {
    throw IoError(fmt::format("--expert-map, what weightcast balance has written: {}", error.what()));
  }
}

/// What the user named of the three options, for messages; empty: none that changes anything.
std::string given_option(const Options& options) {
  if (!options.expert_map.empty()) return "--expert-map " + options.expert_map;
  if (options.redundant_experts > 0) return fmt::format("--redundant-experts {}", options.redundant_experts);
  if (options.placement == "round-robin") return "--placement round-robin";
  return "";
}

}  // namespace

std::optional<ExpertMap> load_expert_map(const Options& options) {
  if (options.expert_map.empty()) return std::nullopt;
  return parse_expert_map(read_map(options.expert_map), options.expert_map);
}

std::optional<ExpertMap> load_expert_map(Control& control, const Options& options) {
  if (options.expert_map.empty()) return std::nullopt;
  std::string text;
  control.agreement.together([&] {
    if (control.rank() == 0) text = read_map(options.expert_map);
  });
  text = control.agreement.broadcast(text);
  std::optional<ExpertMap> map;
  control.agreement.together([&] { map = parse_expert_map(text, options.expert_map); });
  return map;
}

void place_experts(const Options& options, const std::optional<ExpertMap>& map, const Model& model,
                   EngineLayout& layout) {
  // What the user did not name the engines say.
  const bool published = map && map->origin != options.expert_map;
  const std::string option = published ? "the expert map of " + map->origin : given_option(options);
  if (option.empty()) return;
  const char* const remedy =
      published ? "let the engines publish without their experts" : "leave the option out";
  if (layout.canonical()) {
    throw UsageError(
        fmt::format("{}: hf has the model's own tensors, and no expert slots; {}", option, remedy));
  }
  if (!layout.landing.empty()) {
    throw UsageError(
        fmt::format("{}: landing map {} says itself where experts go; {}", option, layout.landing, remedy));
  }
  const bool drafts = model.family->sends_drafts() && model.config != nullptr;
  const ModelLayers layers =
      model_layers(model.family->whole_catalog(), drafts ? model.config->integer({"num_hidden_layers"}) : 0);
  if (layers.experts.empty()) {
    throw UsageError(fmt::format("{}: {} has no experts; {}", option, model.title, remedy));
  }
  if (!map) {
    const auto first =
        options.placement == "round-robin" ? FirstPlacement::kRoundRobin : FirstPlacement::kContiguous;
    layout.experts = first_placement(first, options.redundant_experts, layers, layout.ep, option);
    return;
  }
  if (map->ep != layout.ep) {
    throw UsageError(fmt::format("{}: is of {}, but {} has ep={}; name a map of as many, or give ep={}",
                                 option, counted(map->ep, "rank"), layout.option, layout.ep, map->ep));
  }
  if (map->slots % layout.ep != 0) {
    throw InputError(
        fmt::format("{}: has {} expert slots a layer, which ep={} does not divide; give the layout of "
                    "the engine",
                    map->origin, map->slots, layout.ep));
  }
  layout.experts = fit_placement(*map, layers);
}

std::string slots_text(const EngineLayout& layout) {
  if (layout.experts.contiguous() && layout.experts.epoch == 0) return "";
  return fmt::format("slots by map {} of epoch {}", layout.experts.fingerprint(), layout.experts.epoch);
}

}  // namespace weightcast
