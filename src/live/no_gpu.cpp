// Behind gpu_live.hpp in a build without CUDA: what is on a GPU cannot be opened.

#include "core/error.hpp"
#include "live/gpu_live.hpp"

namespace weightcast {

std::shared_ptr<Memory> open_gpu_segment(const Manifest& manifest, const LiveSegment& segment) {
  throw IoError(manifest.path + ": has memory on " + segment.device +
                ", which this program, built without CUDA, cannot open; use a build with CUDA");
}

std::unique_ptr<Source> make_live_gpu_source(const Plan& /*plan*/, const Catalog& /*catalog*/,
                                             std::int64_t /*trainer*/, const HeldWeights& /*held*/,
                                             const Exporter& /*exporter*/) {
  throw InternalError("this program was built without a GPU path");
}

}  // namespace weightcast
