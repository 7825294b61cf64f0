#include "live/published_layout.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include "core/error.hpp"
#include "core/text.hpp"
#include "model/allocation.hpp"
#include "model/map_fields.hpp"

namespace weightcast {

namespace {

constexpr std::string_view kMap = "map:";

EngineLayout published_layout(const Manifest& engine) {
  try {
    return parse_inference_allocation("layout", engine.layout);
  } catch (const UsageError& error) {
    throw InputError(fmt::format("{}: {}; let the engine publish anew with such a layout, or with none",
                                 engine.path, error.what()));
  }
}

/// As TrainerLayout::to_string() writes it, which ends in options behind the allocation; `hf` and an export
/// map as they are.
std::string published_trainers(const Manifest& trainer) {
  if (trainer.layout == "hf" || published_map(trainer)) return trainer.layout;
  const std::size_t end = std::min(trainer.layout.find(' '), trainer.layout.size());
  try {
    const TrainerLayout allocation = parse_trainer_allocation("layout", trainer.layout.substr(0, end));
    return allocation.to_string() + trainer.layout.substr(end);
  } catch (const UsageError& error) {
    throw InputError(fmt::format("{}: {}; let the trainer publish anew with such a layout, or with none",
                                 trainer.path, error.what()));
  }
}

auto comparable(const EngineLayout& layout) {
  return std::make_tuple(layout.engine, layout.pp, layout.tp, layout.ep, layout.attention_dp);
}

}  // namespace

void require_published_layout(const Manifest& engine, const EngineLayout& layout) {
  if (engine.layout.empty()) return;
  if (comparable(published_layout(engine)) == comparable(layout)) return;
  throw UsageError(
      fmt::format("{}: was published with layout {}, which {} contradicts; give that layout with "
                  "--inference-alloc",
                  engine.path, excerpt(engine.layout), layout.option));
}

void require_published_layout(const Manifest& trainer, const std::optional<TrainerLayout>& layout,
                              const ExportMap* map) {
  if (trainer.layout.empty()) return;
  const std::string published = published_trainers(trainer);
  if (published == (layout ? layout->to_string() : map != nullptr ? std::string(kMap) + map->key : "hf"))
    return;
  const std::string said = layout           ? fmt::format("{} says {}", layout->option, layout->to_string())
                           : map != nullptr ? fmt::format("{} is map {}", map->origin, map->key)
                                            : "no --trainer-alloc says that trainers hold parts of a model";
  const bool option = map == nullptr && published != "hf" && !published_map(trainer);
  const std::string remedy = option ? "give that layout with --trainer-alloc"
                             : map != nullptr && published_map(trainer) ? "let all trainers publish anew"
                             : map != nullptr                           ? "leave --export-map out"
                                                                        : "leave it out";
  throw UsageError(fmt::format("{}: was published with layout {}, but {}; {}", trainer.path,
                               excerpt(trainer.layout), said, remedy));
}

std::optional<std::string> published_map(const Manifest& trainer) {
  if (!trainer.layout.starts_with(kMap)) return std::nullopt;
  std::string key = trainer.layout.substr(kMap.size());
  return is_map_key(key) ? std::optional(std::move(key)) : std::nullopt;
}

}  // namespace weightcast
