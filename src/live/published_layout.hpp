#pragma once

#include <optional>

#include "live/manifest.hpp"
#include "model/engine.hpp"
#include "model/trainer.hpp"

namespace weightcast {

/// Throws UsageError where an engine has published that it is another engine than the job's `layout` says, or
/// one that is cut otherwise; InputError where what it has published cannot be read. How many replicas there
/// are is not compared: an engine need not know of the others.
void require_published_layout(const Manifest& engine, const EngineLayout& layout);

/// Throws UsageError where a trainer has published that it holds other parts of the model than the job's
/// `layout` says, or, without one, that it does not hold the whole model; InputError where what it has
/// published cannot be read.
void require_published_layout(const Manifest& trainer, const std::optional<TrainerLayout>& layout);

}  // namespace weightcast
