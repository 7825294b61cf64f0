#pragma once

#include <optional>
#include <string>

#include "live/manifest.hpp"
#include "model/engine.hpp"
#include "model/export_map.hpp"
#include "model/trainer.hpp"

namespace weightcast {

/// Throws UsageError where an engine has published that it is another engine than the job's `layout` says, or
/// one that is cut otherwise; InputError where what it has published cannot be read. How many replicas there
/// are is not compared: an engine need not know of the others.
void require_published_layout(const Manifest& engine, const EngineLayout& layout);

/// Throws UsageError where a trainer has published that it holds other parts of the model than the job's
/// `layout` or `map` says, or, without either, that it does not hold the whole model; InputError where what
/// it has published cannot be read. `map` is null without an export map.
void require_published_layout(const Manifest& trainer, const std::optional<TrainerLayout>& layout,
                              const ExportMap* map);

/// The key of the export map that a trainer has published with its tensors, if it has.
std::optional<std::string> published_map(const Manifest& trainer);

}  // namespace weightcast
