// Behind gpu.hpp in a build without CUDA: there is never a GPU, so nobody asks for more.

#include "core/error.hpp"
#include "session/gpu.hpp"

namespace weightcast {

namespace {

[[noreturn]] void refuse() {
  throw InternalError("this program was built without a GPU path");
}

}  // namespace

std::string gpu_versions() {
  return "";
}
VisibleGpus visible_gpus() {
  return {};
}
std::string use_gpu(const VisibleGpu& /*gpu*/) {
  refuse();
}
std::int64_t available_gpu_bytes() {
  refuse();
}
std::unique_ptr<Memory> make_gpu_memory(std::int64_t /*bytes*/, const char* /*purpose*/) {
  refuse();
}
std::unique_ptr<Pipeline> make_gpu_pipeline(const Plan& /*plan*/, const RankPlan& /*rank_plan*/,
                                            Routes /*routes*/, std::vector<std::byte*> /*parameters*/,
                                            const DirectRequest& /*direct*/, Control& /*control*/,
                                            int /*blocks*/, const std::vector<std::uint32_t>& /*rounds*/,
                                            GpuStart& /*start*/) {
  refuse();
}
std::unique_ptr<Source> make_resident_source(const Plan& /*plan*/, const Catalog& /*catalog*/,
                                             std::int64_t /*trainer*/, std::int64_t /*version*/) {
  refuse();
}
std::unique_ptr<Source> make_held_gpu_source(const Plan& /*plan*/, const Catalog& /*catalog*/,
                                             std::int64_t /*trainer*/, const HeldWeights& /*held*/,
                                             std::vector<std::span<std::byte>> /*buffers*/) {
  refuse();
}

}  // namespace weightcast
