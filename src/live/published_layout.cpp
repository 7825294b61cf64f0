#include "live/published_layout.hpp"

#include <fmt/format.h>

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

}  // namespace weightcast
