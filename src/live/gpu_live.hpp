#pragma once

#include <cstdint>
#include <memory>

#include "live/exporter.hpp"
#include "live/manifest.hpp"
#include "memory/memory.hpp"
#include "model/catalog.hpp"
#include "plan/held_weights.hpp"
#include "plan/plan.hpp"
#include "source/source.hpp"

/// The one door to live memory on GPUs. A build without CUDA has no_gpu.cpp behind it; the others have
/// cuda/gpu_live.cpp.
namespace weightcast {

/// Opens an exporter's allocation in the current device, whose memory it is. Throws IoError naming the
/// manifest when CUDA refuses, InputError when the allocation is smaller than the manifest says.
std::shared_ptr<Memory> open_gpu_segment(const Manifest& manifest, const LiveSegment& segment);

/// As LiveSource, of weights on the current device.
std::unique_ptr<Source> make_live_gpu_source(const Plan& plan, const Catalog& catalog, std::int64_t trainer,
                                             const HeldWeights& held, const Exporter& exporter);

}  // namespace weightcast
