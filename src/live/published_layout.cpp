#include "live/published_layout.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <tuple>

#include "core/error.hpp"
#include "core/text.hpp"
#include "model/allocation.hpp"

namespace weightcast {

namespace {

EngineLayout published_layout(const Manifest& engine) {
  try {
    return parse_inference_allocation("layout", engine.layout);
  } catch (const UsageError& error) {
    throw InputError(fmt::format("{}: {}; let the engine publish anew with such a layout, or with none",
                                 engine.path, error.what()));
  }
}

/// As TrainerLayout::to_string() writes it, which ends in options behind the allocation; `hf` as it is.
std::string published_trainers(const Manifest& trainer) {
  if (trainer.layout == "hf") return trainer.layout;
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
  return std::make_tuple(layout.engine, layout.pp, layout.tp, layout.ep);
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

void require_published_layout(const Manifest& trainer, const std::optional<TrainerLayout>& layout) {
  if (trainer.layout.empty()) return;
  const std::string published = published_trainers(trainer);
  if (published == (layout ? layout->to_string() : "hf")) return;
  throw UsageError(fmt::format("{}: was published with layout {}, but {}; {}", trainer.path,
                               excerpt(trainer.layout),
                               layout ? fmt::format("{} says {}", layout->option, layout->to_string())
                                      : "no --trainer-alloc says that trainers hold parts of a model",
                               published == "hf" ? "leave it out" : "give that layout with --trainer-alloc"));
}

}  // namespace weightcast
